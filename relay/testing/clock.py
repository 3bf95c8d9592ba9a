"""Clocks that a test controls."""

from __future__ import annotations

from relay.aio.clock import SystemClock


class ManualClock:
    """A clock that moves only by `advance`."""

    def __init__(self, unix_ms: int = 1_760_000_000_000) -> None:
        self._now = 0.0
        self._start_ms = unix_ms

    def monotonic(self) -> float:
        """Seconds; see `aio.clock`."""
        return self._now

    def unix_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._start_ms + round(self._now * 1000)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now += seconds


class MovableClock:
    """The system clock, which a test can move forward."""

    def __init__(self) -> None:
        self._system = SystemClock()
        self._offset_s = 0.0

    def monotonic(self) -> float:
        """Seconds; see `aio.clock`."""
        return self._system.monotonic() + self._offset_s

    def unix_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._system.unix_ms() + round(self._offset_s * 1000)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._offset_s += seconds

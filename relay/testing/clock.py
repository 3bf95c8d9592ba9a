"""Clocks that a test turns."""

from __future__ import annotations

from relay.aio.clock import SystemClock


class ManualClock:
    """Stands still until `advance`."""

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
        """Let time pass."""
        self._now += seconds


class MovableClock:
    """The system's clock, which a test can put forward."""

    def __init__(self) -> None:
        self._system = SystemClock()
        self._ahead_s = 0.0

    def monotonic(self) -> float:
        """Seconds; see `aio.clock`."""
        return self._system.monotonic() + self._ahead_s

    def unix_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._system.unix_ms() + round(self._ahead_s * 1000)

    def advance(self, seconds: float) -> None:
        """Let so much more time have passed."""
        self._ahead_s += seconds

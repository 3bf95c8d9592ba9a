"""Clocks are passed as arguments: `SystemClock` in programs, `relay.testing.clock.ManualClock` in tests."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; only differences are meaningful."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump when the clock is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)  # called for every message: saves a Python frame

    def unix_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

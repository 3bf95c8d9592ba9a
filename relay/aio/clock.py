"""Time as an argument. Programs pass `SystemClock`; tests pass `relay.testing.clock.ManualClock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970, as the machine believes."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)  # called for every message: no frame of ours between

    def unix_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

"""How long to wait before trying again: exponential with full jitter, so that a thousand nodes do not come back at once."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that grow while tries fail.

    Args:
        first_s: the longest first delay.
        most_s: the longest delay of all.
        chance: gives a number in [0, 1); `random.random` in programs.
    """

    def __init__(self, *, first_s: float, most_s: float, chance: Callable[[], float]) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._chance = chance
        self._failures = 0

    def next_delay_s(self) -> float:
        """Count one more failure and give the delay before the next try, never under a tenth of its bound."""
        bound = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return bound * (0.1 + 0.9 * self._chance())

    def reset(self) -> None:
        """The last try succeeded."""
        self._failures = 0

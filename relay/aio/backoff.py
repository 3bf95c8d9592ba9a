"""Retry delays: exponential with jitter, so that a thousand nodes do not come back at once."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that grow with each failure.

    Args:
        first_s: upper bound of the first delay.
        most_s: upper bound of every delay.
        chance: returns a number in [0, 1); programs pass `random.random`.
    """

    def __init__(self, *, first_s: float, most_s: float, chance: Callable[[], float]) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._chance = chance
        self._failures = 0

    def next_delay_s(self) -> float:
        """Count a failure and return the delay before the next try: at least a tenth of its bound."""
        bound = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return bound * (0.1 + 0.9 * self._chance())

    def reset(self) -> None:
        """Start over after a success."""
        self._failures = 0

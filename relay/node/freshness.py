"""How old the policy in force is, and whether anything new may be offered by it."""

from __future__ import annotations

import math

from relay.aio.clock import Clock


class Freshness:
    """Knows when the control plane last said that the policy in force is the newest.

    Args:
        max_staleness_s: past this age agents are told nothing new; None: they always are.
    """

    def __init__(self, *, clock: Clock, max_staleness_s: float | None) -> None:
        self._clock = clock
        self._max_staleness_s = max_staleness_s
        self._began = clock.monotonic()
        self._confirmed_at: float | None = None
        self._withheld = False
        """Agents were told nothing because the policy was too old."""

    def confirmed(self) -> bool:
        """The policy in force is the newest. Returns whether agents wait for what was withheld from them until now."""
        self._confirmed_at = self._clock.monotonic()
        waiting, self._withheld = self._withheld, False
        return waiting

    def age_s(self) -> float | None:
        """Seconds since the policy was known to be the newest; None if it never was in this process."""
        return None if self._confirmed_at is None else self._clock.monotonic() - self._confirmed_at

    def age_or_unknown_s(self) -> float:
        """As `age_s`; without end where it never was."""
        age = self.age_s()
        return math.inf if age is None else age

    def age_or_uptime_s(self) -> float:
        """As `age_s`; since the start where it never was."""
        age = self.age_s()
        return self._clock.monotonic() - self._began if age is None else age

    def may_offer(self) -> bool:
        """Whether agents may be offered something new."""
        if self._max_staleness_s is None:
            return True
        fresh = self.age_or_unknown_s() <= self._max_staleness_s
        self._withheld |= not fresh
        return fresh

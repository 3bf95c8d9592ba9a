"""Tracks how old the policy in force is, and whether it may still be used for new offers."""

from __future__ import annotations

import math

from relay.aio.clock import Clock

MAX_SKEW_S = 300.0
"""So far clocks may be apart before that is a problem."""


class Freshness:
    """Knows when the control plane last confirmed that the policy in force is the newest.

    Args:
        max_staleness_s: beyond this age, agents get no new offers; None for no limit.
    """

    def __init__(self, *, clock: Clock, max_staleness_s: float | None) -> None:
        self._clock = clock
        self._max_staleness_s = max_staleness_s
        self._began = clock.monotonic()
        self._confirmed_at: float | None = None
        self.lag_s = 0.0
        """How far behind our clock the last such message was dated: clocks differ, or it was held back."""
        self._withheld = False
        """Offers were withheld because the policy was too old."""

    def confirm(self, said_ms: int = 0) -> bool:
        """Record that the policy in force is the newest. Return whether offers were withheld until now.

        Args:
            said_ms: when the control plane said so, by its clock; 0 for now. An old message, repeated, makes nothing fresh.
        """
        self.lag_s = (self._clock.unix_ms() - said_ms) / 1000 if said_ms else 0.0
        at = self._clock.monotonic() - (self.lag_s if self.lag_s > MAX_SKEW_S else 0.0)
        self._confirmed_at = at if self._confirmed_at is None else max(at, self._confirmed_at)
        was_withheld, self._withheld = self._withheld, False
        return was_withheld

    def age_s(self) -> float | None:
        """Seconds since the policy was confirmed to be the newest; None if it never was in this process."""
        return None if self._confirmed_at is None else self._clock.monotonic() - self._confirmed_at

    def age_or_unknown_s(self) -> float:
        """Like `age_s`, but infinite if the policy was never confirmed."""
        age = self.age_s()
        return math.inf if age is None else age

    def age_or_uptime_s(self) -> float:
        """Like `age_s`, but since the start if the policy was never confirmed."""
        age = self.age_s()
        return self._clock.monotonic() - self._began if age is None else age

    def may_offer(self) -> bool:
        """Whether agents may be offered something new."""
        if self._max_staleness_s is None:
            return True
        fresh = self.age_or_unknown_s() <= self._max_staleness_s
        self._withheld |= not fresh
        return fresh

"""Time in rollouts.

How long stages were looked at, by a clock that nobody sets and only while somebody looked; and whether what a gate passes on
was said after it first would.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

KEEP_S = 10.0
"""So much of it may be lost with the process."""


@dataclass(slots=True)
class _Stage:
    began_ms: int
    looked_at: float
    observed_s: float
    kept_s: float


class Soak:
    """The time that each rollout's stage was observed, a sum of looks."""

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}

    def look(self, rollout: str, began_ms: int, kept_s: float, now: float, *, most_s: float, counts: bool) -> float:
        """A rollout is looked at.

        Args:
            began_ms: when its stage began: what tells one stage from the next.
            kept_s: how long it was observed as far as is stored.
            now: seconds of a clock that never goes back.
            most_s: the most that may lie between two looks: of a longer gap no more is counted.
            counts: whether the time since the last look counts; not while the rollout is paused.

        Returns:
            Seconds that the stage was observed.
        """
        stage = self._stages.get(rollout)
        if stage is None or stage.began_ms != began_ms:
            self._stages[rollout] = _Stage(began_ms, now, kept_s, kept_s)
            return kept_s
        if counts:
            stage.observed_s += min(now - stage.looked_at, most_s)
        stage.looked_at = now
        return stage.observed_s

    def observed_s(self, rollout: str, began_ms: int, kept_s: float) -> float:
        """As `look`, without looking."""
        stage = self._stages.get(rollout)
        return stage.observed_s if stage is not None and stage.began_ms == began_ms else kept_s

    def is_due(self, rollout: str) -> bool:
        """Whether what was observed is worth storing."""
        stage = self._stages.get(rollout)
        return stage is not None and stage.observed_s - stage.kept_s >= KEEP_S

    def kept(self, rollout: str) -> None:
        """It is stored."""
        if (stage := self._stages.get(rollout)) is not None:
            stage.kept_s = stage.observed_s

    def forget_others(self, going: Collection[str]) -> None:
        """Rollouts that are over are looked at no more."""
        for name in self._stages.keys() - set(going):
            del self._stages[name]


class Confirmations:
    """A gate passes on what its regions say after it first would: what they said before may be over.

    A link that has stopped carrying anything is found out only after a while; until then its region looks as it last did.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, float]] = {}

    def is_confirmed(self, rollout: str, stage: int, heard_at: Iterable[float], now: float) -> bool:
        """Whether every node was heard since the gate of a stage first would pass.

        Args:
            heard_at: when each node that counts last told how it is, in seconds of the clock of `now`.
        """
        known, since = self._since.get(rollout, (-1, 0.0))
        if known != stage:
            self._since[rollout] = stage, now
            since = now
        return all(at > since for at in heard_at)

    def forget(self, rollout: str) -> None:
        """Its gate would not pass now, or has passed."""
        self._since.pop(rollout, None)

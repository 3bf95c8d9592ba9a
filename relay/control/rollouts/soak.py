"""How long the stages of rollouts were looked at: by a clock that nobody sets, and only while somebody looked."""

from __future__ import annotations

from collections.abc import Collection
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

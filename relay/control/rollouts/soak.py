"""Time in rollouts.

`Soak` measures how long each stage was observed. `Confirmations` makes a gate wait for fresh reports before it passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

KEEP_S = 10.0
"""How much observed time a crash may lose."""


@dataclass(slots=True)
class _Stage:
    started_ms: int
    last_look: float
    observed_s: float
    stored_s: float


class Soak:
    """How long the stage of each rollout was observed: the time between looks, by the monotonic clock."""

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}

    def look(self, rollout: str, began_ms: int, kept_s: float, now: float, *, most_s: float, counts: bool) -> float:
        """Record a look at a rollout.

        Args:
            began_ms: when its stage began; it identifies the stage.
            kept_s: the observed time that is stored.
            now: monotonic seconds.
            most_s: the most to count for the time between two looks.
            counts: whether the time since the last look counts; False while the rollout is paused.

        Returns:
            How many seconds the stage was observed.
        """
        stage = self._stages.get(rollout)
        if stage is None or stage.started_ms != began_ms:
            self._stages[rollout] = _Stage(began_ms, now, kept_s, kept_s)
            return kept_s
        if counts:
            stage.observed_s += min(now - stage.last_look, most_s)
        stage.last_look = now
        return stage.observed_s

    def observed_s(self, rollout: str, began_ms: int, kept_s: float) -> float:
        """Return the observed time without recording a look."""
        stage = self._stages.get(rollout)
        return stage.observed_s if stage is not None and stage.started_ms == began_ms else kept_s

    def is_due(self, rollout: str) -> bool:
        """Whether enough new time was observed to store it."""
        stage = self._stages.get(rollout)
        return stage is not None and stage.observed_s - stage.stored_s >= KEEP_S

    def mark_stored(self, rollout: str) -> None:
        """Record that the observed time is stored."""
        if (stage := self._stages.get(rollout)) is not None:
            stage.stored_s = stage.observed_s

    def forget_others(self, going: Collection[str]) -> None:
        """Forget all rollouts but these."""
        for name in self._stages.keys() - set(going):
            del self._stages[name]


class Confirmations:
    """Delays a passing gate until every node has reported again.

    A dead link is noticed only after a while; until then its region seems unchanged.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, float]] = {}

    def is_confirmed(self, rollout: str, stage: int, heard_at: Iterable[float], now: float) -> bool:
        """Whether every node has reported since the gate of this stage first passed.

        Args:
            heard_at: when each relevant node last sent its status, by the same clock as `now`.
        """
        last_stage, since = self._since.get(rollout, (-1, 0.0))
        if last_stage != stage:
            self._since[rollout] = stage, now
            since = now
        return all(at > since for at in heard_at)

    def forget(self, rollout: str) -> None:
        """Start over: the gate no longer passes, or the stage is done."""
        self._since.pop(rollout, None)

"""Helpers for tests: rollouts."""

from __future__ import annotations

from typing import Any

from relay.control.rollouts.revision import GlobalConfig, GlobalRevision
from relay.control.rollouts.rollout import Rollout, RolloutState
from relay.policy.model import Selector
from relay.policy.strategy import OnFailure, StrategySpec

__all__ = ["GlobalConfig", "revision", "rollout", "strategy"]
STAGES = [{"name": "canary", "percentage": 5}, {"name": "pilot", "percentage": 20}, {"name": "all", "percentage": 100}]


def revision(rate: int, *, variables: dict[str, str] | None = None, **labels: str) -> GlobalConfig:
    return GlobalConfig("t@v1", "00", {"rate": rate}, variables or {}, 1, Selector(labels=dict(labels)))


def strategy(**more: Any) -> StrategySpec:
    return StrategySpec.model_validate({"stages": STAGES, **more})


def rollout(candidate: GlobalRevision | None = None, spec: StrategySpec | None = None, **more: Any) -> Rollout:
    values: dict[str, Any] = {
        "name": "a-2",
        "assignment": "a",
        "candidate": candidate or revision(2),
        "stable": revision(1),
        "strategy": spec or strategy(),
        "digest": "d" * 64,
        "created_by": "ann",
        "created_ms": 1_000,
        "state": RolloutState.RUNNING,
        "on_failure": OnFailure.ROLLBACK,
    }
    return Rollout(**{**values, **more})

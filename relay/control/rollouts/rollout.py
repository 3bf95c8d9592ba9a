"""Rollouts: the change of an assignment from one revision to the next, and its progress."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.control.rollouts.revision import GlobalRevision, revision_from_plain
from relay.policy.published import PublishedRollout
from relay.policy.rollout import EVERYONE
from relay.policy.strategy import OnFailure, Stage, StrategySpec, SuccessCriteria


class Way(enum.StrEnum):
    """Where the strategy of a rollout comes from."""

    NAMED = "named"
    """The documents name it."""
    KEPT = "kept"
    """The documents named it until now; this is the last rollout that uses it."""
    SETTINGS = "settings"
    """The settings, as the documents name none."""


class RolloutState(enum.StrEnum):
    """The state of a rollout."""

    PENDING_APPROVAL = "pending_approval"
    RUNNING = "running"
    HELD = "held"
    """Like RUNNING, but the gate cannot decide."""
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    ABORTED = "aborted"


GOING = frozenset({RolloutState.RUNNING, RolloutState.HELD, RolloutState.PAUSED})
"""The candidate is being rolled out."""
ACTIVE = GOING | {RolloutState.PENDING_APPROVAL, RolloutState.ROLLING_BACK}


@dataclass(frozen=True, slots=True)
class Passed:
    """A stage that has ended, successfully or not."""

    started_ms: int
    ended_ms: int
    counts: dict[str, int]
    gate: dict[str, str]


@dataclass(frozen=True, slots=True)
class ApprovalGiven:
    """An approval of a change."""

    actor: str
    at_ms: int
    digest: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout. It is immutable: each step makes a new object, which is stored before it takes effect."""

    name: str
    """ASSIGNMENT-NUMBER."""
    assignment: str
    candidate: GlobalRevision
    strategy: StrategySpec
    digest: str
    """The digest of everything that is approved: revision, selector and strategy."""
    created_by: str
    created_ms: int
    state: RolloutState
    on_failure: OnFailure
    stable: GlobalRevision | None = None
    reason: str = ""
    """Why it is in this state, for users."""
    stage: int = 0
    stage_started_ms: int = 0
    observed_s: float = 0.0
    """How long the current stage was observed, by the monotonic clock. The stage's duration refers to this."""
    thresholds: dict[str, int] = field(default_factory=dict)
    """Region → threshold; `""` stands for all other regions."""
    passed: tuple[Passed, ...] = ()
    needed: int = 0
    """The number of approvals it needs."""
    asked: tuple[int, bool] = (0, False)
    """(approvals, four eyes) that its documents ask for. It needs more if the change it replaces asked for more."""
    authors: tuple[str, ...] = ()
    """All who contributed to it, including `created_by`."""
    failed: bool = False
    """A stage failed, so no agent keeps its candidate."""
    at_once: bool = False
    """It has no strategy: all agents are offered it at once, and it ends when they have decided."""
    way: Way = Way.SETTINGS
    four_eyes: bool = False
    approvals: tuple[ApprovalGiven, ...] = ()
    ended_ms: int = 0

    @property
    def active(self) -> bool:
        """Whether it is not over yet."""
        return self.state in ACTIVE

    @property
    def keeps_its_way(self) -> bool:
        """Whether the next change also uses its strategy if the documents no longer name one."""
        return self.way is Way.NAMED or (self.way is Way.KEPT and self.state is not RolloutState.COMPLETED)

    @property
    def current(self) -> Stage:
        """The current stage."""
        return self.strategy.stages[self.stage]

    def threshold(self, region: str) -> int:
        """The threshold of a region: agents whose bucket is below it are, or were, on the candidate."""
        return self.thresholds.get(region, self.thresholds.get("", 0))

    def for_region(self, region: str) -> PublishedRollout:
        """The rollout as published to a region."""
        return PublishedRollout(
            id=self.name,
            candidate=self.candidate.for_region(region),
            threshold=self.threshold(region),
            stage=self.current.name,
            selector=self.strategy.target_selector,
            local_guard=self.strategy.local_guard,
            candidate_ttl_s=self.strategy.candidate_ttl_s,
        )

    def plain(self) -> dict[str, Any]:
        """Plain values for the database."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["candidate"] = self.candidate.plain()
        value["stable"] = self.stable.plain() if self.stable else None
        value["strategy"] = self.strategy.model_dump(exclude_unset=True)
        value["state"], value["way"], value["on_failure"] = self.state.value, self.way.value, self.on_failure.value
        value["passed"] = [dataclasses.asdict(p) for p in self.passed]
        value["authors"] = list(self.authors)
        value["asked"] = list(self.asked)
        value["approvals"] = [dataclasses.asdict(a) for a in self.approvals]
        return value

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Rollout:
        """The inverse of `plain`."""
        candidate = revision_from_plain(value["candidate"])
        assert candidate is not None
        return cls(
            **{
                **value,
                "candidate": candidate,
                "stable": revision_from_plain(value["stable"]),
                "strategy": StrategySpec.model_validate(value["strategy"]),
                "state": RolloutState(value["state"]),
                "way": Way(value.get("way", Way.SETTINGS)),
                "on_failure": OnFailure(value["on_failure"]),
                "authors": tuple(value["authors"]),
                "asked": tuple(value.get("asked", (0, False))),
                "passed": tuple(Passed(**p) for p in value["passed"]),
                "approvals": tuple(ApprovalGiven(**a) for a in value["approvals"]),
            }
        )


def at_once(error_rate: float | None = None, min_agents: int = 1) -> StrategySpec:
    """The strategy of an assignment that names none.

    Args:
        error_rate: the change is rolled back if a larger share of its agents fails; None for never.
        min_agents: with fewer agents it is never rolled back.
    """
    criteria = SuccessCriteria(error_rate_threshold=error_rate)
    stage = Stage(name="all", percentage=100, success_criteria=criteria)
    return StrategySpec(stages=[stage], min_samples=min_agents)


ALL = {"": EVERYONE}

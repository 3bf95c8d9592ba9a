"""What a rollout is: a change of an assignment from one revision to the next, and how far it has come."""

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
    """Who says by which strategy a rollout goes out."""

    NAMED = "named"
    """Its documents."""
    KEPT = "kept"
    """Its documents no longer do: it is the last to go out by the strategy that they named."""
    SETTINGS = "settings"
    """The settings, for all whose documents name none."""


class RolloutState(enum.StrEnum):
    """Where a rollout is."""

    PENDING_APPROVAL = "pending_approval"
    RUNNING = "running"
    HELD = "held"
    """As RUNNING; the gate cannot say yes or no."""
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    ABORTED = "aborted"


GOING = frozenset({RolloutState.RUNNING, RolloutState.HELD, RolloutState.PAUSED})
"""The candidate is out at some agents, and should be."""
ACTIVE = GOING | {RolloutState.PENDING_APPROVAL, RolloutState.ROLLING_BACK}


@dataclass(frozen=True, slots=True)
class Passed:
    """A stage that is over, well or not."""

    started_ms: int
    ended_ms: int
    counts: dict[str, int]
    gate: dict[str, str]


@dataclass(frozen=True, slots=True)
class ApprovalGiven:
    """Somebody's word for a change."""

    actor: str
    at_ms: int
    digest: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout. Never changed: each step makes a new one, which is stored before it counts."""

    name: str
    """ASSIGNMENT-NUMBER."""
    assignment: str
    candidate: GlobalRevision
    strategy: StrategySpec
    digest: str
    """Of everything that is approved: revision, selector, strategy."""
    created_by: str
    created_ms: int
    state: RolloutState
    on_failure: OnFailure
    stable: GlobalRevision | None = None
    reason: str = ""
    """Why it is in this state, in words."""
    stage: int = 0
    stage_started_ms: int = 0
    observed_s: float = 0.0
    """How long the current stage was looked at, by a clock that nobody sets: what its duration is measured with."""
    thresholds: dict[str, int] = field(default_factory=dict)
    """Region → threshold; `""` for every region that is not named."""
    passed: tuple[Passed, ...] = ()
    needed: int = 0
    """Approvals that it needs."""
    asked: tuple[int, bool] = (0, False)
    """(approvals, four eyes) that its documents ask for; it may need more because what it replaces asked for more."""
    authors: tuple[str, ...] = ()
    """Everybody who had a part in it, `created_by` among them."""
    failed: bool = False
    """A stage of it failed: nobody keeps its candidate."""
    at_once: bool = False
    """It goes out without a strategy: everybody is offered it, and nothing is waited for but that agents decide."""
    way: Way = Way.SETTINGS
    four_eyes: bool = False
    approvals: tuple[ApprovalGiven, ...] = ()
    ended_ms: int = 0

    @property
    def active(self) -> bool:
        """Whether something may still happen to it."""
        return self.state in ACTIVE

    @property
    def keeps_its_way(self) -> bool:
        """Whether the next change goes out by its strategy too, where the documents name none any more."""
        return self.way is Way.NAMED or (self.way is Way.KEPT and self.state is not RolloutState.COMPLETED)

    @property
    def current(self) -> Stage:
        """The stage that it is in."""
        return self.strategy.stages[self.stage]

    def threshold(self, region: str) -> int:
        """Agents of a region whose bucket is below this are, or were, on the candidate."""
        return self.thresholds.get(region, self.thresholds.get("", 0))

    def for_region(self, region: str) -> PublishedRollout:
        """As one region gets it."""
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
        """As plain values, to be stored."""
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
        """Undo `plain`."""
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
    """What an assignment without a strategy does.

    Args:
        error_rate: it is taken back where more than this share of its agents failed; None: it never is.
        min_agents: and there are at least so many of them.
    """
    criteria = SuccessCriteria(error_rate_threshold=error_rate)
    stage = Stage(name="all", percentage=100, success_criteria=criteria)
    return StrategySpec(stages=[stage], min_samples=min_agents)


ALL = {"": EVERYONE}

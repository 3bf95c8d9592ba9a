"""What a rollout is: a change of an assignment from one revision to the next, and how far it has come."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relay.policy.model import Selector
from relay.policy.rollout import EVERYONE
from relay.policy.snapshot import CONFIG, PACKAGES, ConfigRevision, PackageRevision
from relay.policy.snapshot import Rollout as PublishedRollout
from relay.policy.strategy import Stage, StrategySpec, SuccessCriteria


@dataclass(frozen=True, slots=True)
class GlobalConfig:
    """One state of a ConfigAssignment in all regions: regions differ in the variables that it pins."""

    template: str
    template_digest: str
    values: dict[str, Any]
    variables: dict[str, str]
    """Region → NAME@DIGEST of its variables; a region that is missing has none."""
    renderer: int
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    slot: str = ""
    observe_only: bool = False

    @property
    def kind(self) -> str:
        """Of the assignment."""
        return CONFIG

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package: none."""
        return frozenset()

    @property
    def title(self) -> str:
        """For people."""
        return self.template

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources whose contents it needs."""
        return frozenset(f"RegionVariables/{pin}" for pin in self.variables.values())

    def as_rendered_by(self, other: GlobalRevision) -> GlobalConfig:
        """The same with the renderer of another revision."""
        return dataclasses.replace(self, renderer=other.renderer) if isinstance(other, GlobalConfig) else self

    def for_region(self, region: str) -> ConfigRevision:
        """As one region gets it."""
        return ConfigRevision(
            template=self.template,
            template_digest=self.template_digest,
            values=self.values,
            variables=self.variables.get(region, ""),
            renderer=self.renderer,
            selector=self.selector,
            priority=self.priority,
            slot=self.slot,
        )

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        value = {name: getattr(self, name) for name in self.__slots__}
        return {**value, "selector": self.selector.model_dump(exclude_unset=True)}


@dataclass(frozen=True, slots=True)
class GlobalPackages:
    """One state of a PackageAssignment; the same in all regions."""

    packages: tuple[str, ...]
    """NAME@VERSION@DIGEST of each package."""
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    prefetch: bool = False

    @property
    def kind(self) -> str:
        """Of the assignment."""
        return PACKAGES

    @property
    def title(self) -> str:
        """For people."""
        return " ".join(sorted(self.versions))

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package."""
        return frozenset(pin.rpartition("@")[0] for pin in self.packages)

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources whose contents it needs."""
        return frozenset(f"Package/{pin}" for pin in self.packages)

    @property
    def slot(self) -> str:
        """An agent has one set of packages."""
        return ""

    @property
    def observe_only(self) -> bool:
        """Packages are offered, or not assigned."""
        return False

    def as_rendered_by(self, _: GlobalRevision) -> GlobalPackages:
        """The same: nothing of it is rendered."""
        return self

    def for_region(self, region: str) -> PackageRevision:
        """As one region gets it."""
        return PackageRevision(packages=list(self.packages), selector=self.selector, priority=self.priority)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "packages": list(self.packages),
            "selector": self.selector.model_dump(exclude_unset=True),
            "priority": self.priority,
            "prefetch": self.prefetch,
        }


GlobalRevision = GlobalConfig | GlobalPackages


def revision_from_plain(value: Mapping[str, Any] | None) -> GlobalRevision | None:
    """Undo `plain` of a revision of either kind."""
    if value is None:
        return None
    selector = Selector.model_validate(value["selector"])
    if "packages" in value:
        return GlobalPackages(**{**value, "selector": selector, "packages": tuple(value["packages"])})
    return GlobalConfig(**{**value, "selector": selector})


class Way(enum.StrEnum):
    """Who says by which strategy a rollout goes out."""

    NAMED = "named"
    """Its documents."""
    KEPT = "kept"
    """Its documents no longer do: it is the last to go out by the strategy that they named."""
    SETTINGS = "settings"
    """The settings, for all whose documents name none."""


class State(enum.StrEnum):
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


GOING = frozenset({State.RUNNING, State.HELD, State.PAUSED})
"""The candidate is out at some agents, and should be."""
ACTIVE = GOING | {State.PENDING_APPROVAL, State.ROLLING_BACK}


class Verdict(enum.StrEnum):
    """What the gate of a stage says."""

    PASS = "pass"  # noqa: S105
    HOLD = "hold"
    """It cannot be told: too few samples, a region that cannot be heard."""
    FAIL = "fail"
    WAITING = "waiting"
    """Not yet: time, agents that are about to decide, a person, a window."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A verdict and why, in words for people."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Agents on the candidate's side of a rollout."""

    targets: int = 0
    offered: int = 0
    """Of `targets`: were offered the candidate, or have it."""
    applied: int = 0
    failed: int = 0
    silent: int = 0
    """Connected, and said nothing of it for too long."""
    unhealthy: int = 0
    """Applied it and are unhealthy, and were not before."""
    reporting: int = 0
    """Applied it, tell of their health, and were not unhealthy before."""
    undecided: int = 0
    """Connected, and still have time to say something."""
    lasting: int = 0
    """Of `unhealthy`: for a while."""
    holding: int = 0
    """Agents of all targets that run the candidate or may be about to."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(operator.add, _numbers(self), _numbers(other)))

    def __mul__(self, times: int) -> Counts:
        return Counts(*(number * times for number in _numbers(self)))

    def plain(self) -> dict[str, int]:
        """The six that people see."""
        names = ("targets", "offered", "applied", "failed", "silent", "unhealthy")
        return {name: getattr(self, name) for name in names}


_numbers: Callable[[Counts], tuple[int, ...]] = operator.attrgetter(*(f.name for f in dataclasses.fields(Counts)))


@dataclass(frozen=True, slots=True)
class RegionView:
    """What is known of a region just now."""

    counts: Counts = Counts()
    connected: bool = True
    """All of its nodes can be heard."""
    catching_up: bool = False
    """Where they cannot: their links are up, and what they told before has yet to be compared."""
    current: bool = True
    """All of its nodes have the newest policy."""
    halted: str = ""
    """Why a node of it went back to stable by itself; empty where none did."""
    refused: str = ""
    """Why a node of it cannot put the change in force, or what its values lack; empty where it can."""


class Troubled(NamedTuple):
    """An agent that is not well with a candidate."""

    agent: str
    region: str
    state: str
    """`failed`, `unhealthy` or `silent`."""
    message: str
    """What it said."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a rollout just now."""

    regions: dict[str, RegionView]
    """Those where it has agents on its candidate's side."""
    goals: list[tuple[str, str]]
    """(region, agent id) of all its targets."""
    troubled: list[Troubled]
    """Some of those on the candidate's side that are not well."""


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
    state: State
    on_failure: str
    """`rollback` or `pause`."""
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
        value["state"], value["way"] = self.state.value, self.way.value
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
                "state": State(value["state"]),
                "way": Way(value.get("way", Way.SETTINGS)),
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

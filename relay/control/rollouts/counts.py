"""Counts of a rollout's agents, and the verdicts of its gates."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Verdict(enum.StrEnum):
    """The verdict of a gate."""

    PASS = "pass"  # noqa: S105
    HOLD = "hold"
    """Undecidable: too few samples, or a region is offline."""
    FAIL = "fail"
    WAITING = "waiting"
    """Not yet: for more time, agents that are still deciding, a person, or a window."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A verdict and its reason, for users."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Agents on the candidate's side of a rollout."""

    targets: int = 0
    offered: int = 0
    """Targets that were offered the candidate, or have it."""
    applied: int = 0
    failed: int = 0
    silent: int = 0
    """Connected, but without an answer for too long."""
    unhealthy: int = 0
    """Applied it and are unhealthy, but were not before."""
    reporting: int = 0
    """Applied it, report their health, and were not unhealthy before."""
    undecided: int = 0
    """Connected, and still have time to answer."""
    lasting: int = 0
    """Those of `unhealthy` that have been so for a while."""
    holding: int = 0
    """Agents that run the candidate or may be about to, on either side of the threshold."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(operator.add, _numbers(self), _numbers(other)))

    def __mul__(self, times: int) -> Counts:
        return Counts(*(number * times for number in _numbers(self)))

    def plain(self) -> dict[str, int]:
        """The six counts that users see."""
        names = ("targets", "offered", "applied", "failed", "silent", "unhealthy")
        return {name: getattr(self, name) for name in names}


_numbers: Callable[[Counts], tuple[int, ...]] = operator.attrgetter(*(f.name for f in dataclasses.fields(Counts)))


@dataclass(frozen=True, slots=True)
class RegionView:
    """The current state of a region."""

    counts: Counts = Counts()
    connected: bool = True
    """All of its nodes report."""
    catching_up: bool = False
    """If not connected: the links are up, but both ends have yet to be compared."""
    current: bool = True
    """All of its nodes have the newest policy."""
    halted: str = ""
    """Why a node reverted to stable on its own; empty if none did."""
    refused: str = ""
    """Why a node cannot apply the change; empty if all can."""


class Trouble(enum.StrEnum):
    """The problem of an agent on a candidate."""

    FAILED = "failed"
    UNHEALTHY = "unhealthy"
    SILENT = "silent"


class TroubledAgent(NamedTuple):
    """An agent that has a problem with a candidate."""

    agent: str
    region: str
    state: Trouble
    message: str
    """What the agent reported."""


@dataclass(frozen=True, slots=True)
class TargetList:
    """(region, agent id) of all targets of a rollout, listed lazily."""

    regions: frozenset[str]
    """Regions that have targets."""
    each: Callable[[], Iterable[tuple[str, str]]]

    def __bool__(self) -> bool:
        return bool(self.regions)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.each())


@dataclass(frozen=True, slots=True)
class Look:
    """The current state of a rollout's targets."""

    regions: dict[str, RegionView]
    """Regions with agents on the candidate's side."""
    goals: TargetList
    troubled: list[TroubledAgent]
    """Some of the agents with problems on the candidate's side."""
    heard_at: tuple[float, ...] = ()
    """When each relevant node had last reported before its agents were counted, by the monotonic clock."""

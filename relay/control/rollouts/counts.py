"""What is counted of a rollout's agents, and what a gate says of it."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


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


class Trouble(enum.StrEnum):
    """What may be wrong with an agent on a candidate."""

    FAILED = "failed"
    UNHEALTHY = "unhealthy"
    SILENT = "silent"


class Troubled(NamedTuple):
    """An agent that is not well with a candidate."""

    agent: str
    region: str
    state: Trouble
    message: str
    """What it said."""


@dataclass(frozen=True, slots=True)
class Goals:
    """(region, agent id) of all targets of a rollout; gone through only when somebody asks who they are."""

    regions: frozenset[str]
    """Where they are."""
    each: Callable[[], Iterable[tuple[str, str]]]

    def __bool__(self) -> bool:
        return bool(self.regions)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.each())


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a rollout just now."""

    regions: dict[str, RegionView]
    """Those where it has agents on its candidate's side."""
    goals: Goals
    troubled: list[Troubled]
    """Some of those on the candidate's side that are not well."""
    heard_at: tuple[float, ...] = ()
    """When each node that is waited for was last heard before its agents were counted, by the monotonic clock."""

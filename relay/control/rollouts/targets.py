"""Whom a rollout is for: agents of its assignment that its strategy names too, and that no other assignment takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relay.control.rollouts.revision import GlobalRevision
from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher


@dataclass(frozen=True, slots=True)
class Contender:
    """A revision that contends for agents."""

    name: str
    """Of its assignment."""
    slot: str
    priority: int
    selector: Selector

    @classmethod
    def of(cls, name: str, revision: GlobalRevision) -> Contender:
        """What one revision contends with of an assignment."""
        return cls(name, revision.slot, revision.priority, revision.selector)

    def beats(self, other: Contender) -> bool:
        """Whether it wins over another one where both match."""
        return self.slot == other.slot and (-self.priority, self.name) < (-other.priority, other.name)


@dataclass(frozen=True, slots=True)
class Target:
    """An agent that a rollout is for."""

    region: str
    facts: Facts
    chosen: bool
    """The candidate would be given to it; else the candidate takes the assignment from it."""
    had: bool
    """The stable revision was given to it."""
    falls: bool
    """Without the assignment another one gives it something: it does not just keep what it has."""


Sides = tuple[bool, bool, bool]
"""`chosen`, `had` and `falls` of a `Target`."""


class Selection:
    """Whom a rollout is for, told by the outcomes of all selectors that have a say in it.

    Args:
        candidate: the revision that goes out.
        stable: the one that it replaces; None where there is none.
        strategy: must match as well.
        others: contenders of all other assignments.
        also: selectors that decide nothing here; agents that they tell apart have different vectors all the same.
    """

    def __init__(
        self,
        candidate: Contender,
        stable: Contender | None,
        strategy: Selector,
        others: Sequence[Contender],
        also: Iterable[Selector] = (),
    ) -> None:
        self._candidate = candidate
        self._stable = stable
        mine = [candidate, *([stable] if stable is not None else [])]
        self.matcher = Matcher([strategy, *(contender.selector for contender in [*mine, *others]), *also])
        self._others = list(enumerate(others, start=1 + len(mine)))

    def sides(self, vector: int) -> Sides | None:
        """What it is to agents of a vector of `matcher`; None: nothing."""
        if not self.matcher.matches(0, vector):
            return None
        stable = self._stable
        chosen, had = self._wins(self._candidate, 1, vector), stable is not None and self._wins(stable, 2, vector)
        if not (chosen or had):
            return None
        lost = stable or self._candidate
        return chosen, had, any(o.slot == lost.slot and self.matcher.matches(i, vector) for i, o in self._others)

    def _wins(self, contender: Contender, number: int, vector: int) -> bool:
        return self.matcher.matches(number, vector) and not any(
            other.beats(contender) and self.matcher.matches(i, vector) for i, other in self._others
        )

"""Targets of a rollout: agents that match its assignment and strategy, and that no other assignment wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relay.control.rollouts.revision import GlobalRevision
from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher


@dataclass(frozen=True, slots=True)
class Contender:
    """A revision that competes for agents with those of other assignments."""

    name: str
    """The name of its assignment."""
    slot: str
    priority: int
    selector: Selector

    @classmethod
    def of(cls, name: str, revision: GlobalRevision) -> Contender:
        """The contender for a revision of an assignment."""
        return cls(name, revision.slot, revision.priority, revision.selector)

    def beats(self, other: Contender) -> bool:
        """Whether it wins over another contender if both match."""
        return self.slot == other.slot and (-self.priority, self.name) < (-other.priority, other.name)


@dataclass(frozen=True, slots=True)
class Target:
    """A target of a rollout."""

    region: str
    facts: Facts
    chosen: bool
    """It gets the candidate. Otherwise it loses the assignment."""
    had: bool
    """It had the stable revision."""
    falls: bool
    """If it loses the assignment, another one gives it something; otherwise it keeps what it has."""


Sides = tuple[bool, bool, bool]
"""`chosen`, `had` and `falls` of a `Target`."""


class Selection:
    """Selects the targets of a rollout by the outcomes of all selectors that matter.

    Args:
        candidate: the new revision.
        stable: the revision it replaces, if any.
        strategy: the target selector of the strategy, which must match too.
        others: the contenders of all other assignments.
        also: selectors that only make vectors differ, without deciding anything here.
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
        own = [candidate, *([stable] if stable is not None else [])]
        self.matcher = Matcher([strategy, *(contender.selector for contender in [*own, *others]), *also])
        self._others = list(enumerate(others, start=1 + len(own)))

    def sides(self, vector: int) -> Sides | None:
        """What the rollout means for agents with this vector of `matcher`; None if nothing."""
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

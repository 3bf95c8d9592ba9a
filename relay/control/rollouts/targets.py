"""Whom a rollout is for: agents of its assignment that its strategy names too, and that no other assignment takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.control.rollouts.revision import GlobalRevision
from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher

T = TypeVar("T")


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


class Population(Generic[T]):
    """Agents, sorted once by what selectors see of them: many rollouts ask who of them is theirs.

    Args:
        agents: each with its facts.
        selectors: those that will be asked for.
    """

    def __init__(self, agents: Iterable[tuple[Facts, T]], selectors: Sequence[Selector]) -> None:
        matcher = Matcher(selectors)
        self._terms = {term for selector in selectors for term in selector.terms}
        self._named = {agent_id for selector in selectors for agent_id in selector.agent_ids}
        alike: dict[tuple[int, str], tuple[Facts, list[T]]] = {}
        for facts, agent in agents:
            key = matcher.vector(facts), facts.agent_id if facts.agent_id in self._named else ""
            alike.setdefault(key, (facts, []))[1].append(agent)
        self.alike = list(alike.values())
        """(facts of one of them, agents that none of the selectors can tell from each other)."""

    def tells(self, selectors: Iterable[Selector]) -> bool:
        """Whether these selectors tell no more of these agents from each other than those that they were sorted by."""
        return all(self._named.issuperset(s.agent_ids) and self._terms.issuperset(s.terms) for s in selectors)


def select(
    population: Population[T],
    candidate: Contender,
    stable: Contender | None,
    strategy: Selector,
    others: Sequence[Contender],
) -> Iterator[tuple[tuple[bool, bool, bool], Sequence[T]]]:
    """The targets of a rollout: (`chosen`, `had` and `falls` of `Target`, the agents of which that is so).

    Args:
        population: all agents that are known, sorted by all selectors of the other arguments.
        candidate: the revision that goes out.
        stable: the one that it replaces; None where there is none.
        strategy: must match as well.
        others: contenders of all other assignments.
    """
    mine = [candidate, *([stable] if stable is not None else [])]
    matcher = Matcher([strategy, *(contender.selector for contender in [*mine, *others])])
    numbered = list(enumerate([*mine, *others], start=1))

    def wins(contender: Contender, number: int, vector: int) -> bool:
        return matcher.matches(number, vector) and not any(
            other.beats(contender) and matcher.matches(i, vector) for i, other in numbered[len(mine) :]
        )

    for facts, agents in population.alike:
        vector = matcher.vector(facts)
        if not matcher.matches(0, vector):
            continue
        chosen, had = wins(candidate, 1, vector), stable is not None and wins(stable, 2, vector)
        if chosen or had:
            lost = stable or candidate
            falls = any(o.slot == lost.slot and matcher.matches(i, vector) for i, o in numbered[len(mine) :])
            yield (chosen, had, falls), agents

"""Whom a rollout is for: agents of its assignment that its strategy names too, and that no other assignment takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from relay.control.rollouts.model import GlobalRevision
from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher


@dataclass(frozen=True, slots=True)
class Claim:
    """A revision that contends for agents."""

    name: str
    """Of its assignment."""
    slot: str
    priority: int
    selector: Selector

    @classmethod
    def of(cls, name: str, revision: GlobalRevision) -> Claim:
        """The claim of one revision of an assignment."""
        return cls(name, revision.slot, revision.priority, revision.selector)

    def beats(self, other: Claim) -> bool:
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


def select(
    agents: Iterable[tuple[str, Facts]],
    candidate: Claim,
    stable: Claim | None,
    strategy: Selector,
    others: Sequence[Claim],
) -> Iterator[Target]:
    """The targets of a rollout.

    Args:
        agents: (region, facts) of all agents that are known.
        candidate: the revision that goes out.
        stable: the one that it replaces; None where there is none.
        strategy: must match as well.
        others: claims of all other assignments.
    """
    mine = [candidate, *([stable] if stable is not None else [])]
    matcher = Matcher([strategy, *(claim.selector for claim in [*mine, *others])])
    numbered = list(enumerate([*mine, *others], start=1))

    def wins(claim: Claim, number: int, vector: int) -> bool:
        return matcher.matches(number, vector) and not any(
            other.beats(claim) and matcher.matches(i, vector) for i, other in numbered[len(mine) :]
        )

    def verdict(vector: int) -> tuple[bool, bool, bool]:
        if not matcher.matches(0, vector):
            return False, False, False
        lost = stable or candidate
        falls = any(o.slot == lost.slot and matcher.matches(i, vector) for i, o in numbered[len(mine) :])
        return wins(candidate, 1, vector), stable is not None and wins(stable, 2, vector), falls

    verdicts: dict[int, tuple[bool, bool, bool]] = {}
    for region, facts in agents:
        vector = matcher.vector(facts)
        if vector not in verdicts:
            verdicts[vector] = verdict(vector)
        chosen, had, falls = verdicts[vector]
        if chosen or had:
            yield Target(region, facts, chosen, had, falls)

"""Whom a rollout is for: agents of its assignment that its strategy names too, and that no other assignment takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher


@dataclass(frozen=True, slots=True)
class Target:
    """An agent that a rollout is for."""

    region: str
    agent_id: str
    chosen: bool
    """The candidate's selector matches it; else the candidate takes the assignment from it."""
    had: bool
    """The stable revision's selector matches it."""


def select(
    agents: Iterable[tuple[str, Facts]],
    candidate: Selector,
    stable: Selector | None,
    strategy: Selector,
    rivals: Sequence[Selector],
) -> Iterator[Target]:
    """The targets of a rollout.

    Args:
        agents: (region, facts) of all agents that are known.
        candidate: whom the candidate is for.
        stable: whom the stable revision is for; None where there is none.
        strategy: must match as well.
        rivals: selectors of assignments that win the slot wherever they match.
    """
    mine, theirs = Matcher([candidate, strategy, *([stable] if stable is not None else [])]), Matcher(rivals)
    verdicts: dict[int, tuple[bool, bool]] = {}
    for region, facts in agents:
        vector = mine.vector(facts)
        if vector not in verdicts:
            named = mine.matches(1, vector)
            verdicts[vector] = (
                named and mine.matches(0, vector),
                named and stable is not None and mine.matches(2, vector),
            )
        chosen, had = verdicts[vector]
        if not chosen and not had:
            continue
        if rivals:
            other = theirs.vector(facts)
            if any(theirs.matches(i, other) for i in range(len(rivals))):
                continue
        yield Target(region, facts.agent_id, chosen, had)

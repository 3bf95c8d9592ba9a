"""Whom a rollout is for: agents of its assignment that its strategy names too, and that no other assignment takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher


def select(
    agents: Iterable[tuple[str, Facts]], own: Sequence[Selector], strategy: Selector, rivals: Sequence[Selector]
) -> Iterator[tuple[str, str]]:
    """(region, agent id) of each target.

    Args:
        agents: (region, facts) of all agents that are known.
        own: selectors of the revisions concerned; one must match.
        strategy: must match as well.
        rivals: selectors of assignments that win the slot wherever they match.
    """
    mine, theirs = Matcher([*own, strategy]), Matcher(rivals)
    verdicts: dict[int, bool] = {}
    last = len(own)
    for region, facts in agents:
        vector = mine.vector(facts)
        if vector not in verdicts:
            verdicts[vector] = mine.matches(last, vector) and any(mine.matches(i, vector) for i in range(last))
        if not verdicts[vector]:
            continue
        if rivals:
            other = theirs.vector(facts)
            if any(theirs.matches(i, other) for i in range(len(rivals))):
                continue
        yield region, facts.agent_id

"""Helpers for tests: a fleet for document checks."""

from __future__ import annotations

from relay.policy.selector import Facts, Matcher


class Known:
    """The part of a fleet that checks use."""

    def __init__(self, *agents: Facts) -> None:
        self._agents = agents

    def __len__(self) -> int:
        return len(self._agents)

    def vectors(self, matcher: Matcher) -> dict[int, str]:
        return {matcher.vector(facts): facts.agent_id for facts in self._agents}

    def live_regions(self) -> set[str]:
        return {"eu"}

"""A fleet for checks, for tests."""

from __future__ import annotations

from relay.policy.selector import Facts, Matcher


class Known:
    """A fleet as checks see it."""

    def __init__(self, *agents: Facts) -> None:
        self._agents = agents

    def __len__(self) -> int:
        return len(self._agents)

    def vectors(self, matcher: Matcher) -> dict[int, str]:
        return {matcher.vector(facts): facts.agent_id for facts in self._agents}

    def live_regions(self) -> set[str]:
        return {"eu"}

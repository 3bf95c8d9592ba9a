"""Decisions as nodes make them, to explain why an agent gets what it gets."""

from __future__ import annotations

from typing import Any

from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.regions.publisher import Publisher
from relay.fleet.explain import explain_agent
from relay.fleet.guard import frozen_rollouts
from relay.link.protocol.peer import Version
from relay.pb.relay.v1 import link_pb2
from relay.policy.evaluate import Evaluator
from relay.policy.snapshot import Snapshot, build


class Previews:
    """Evaluators of the published policies, built once per manifest."""

    def __init__(self, publisher: Publisher, fleet: Fleet) -> None:
        self._publisher = publisher
        self._fleet = fleet
        self._snapshots: dict[str, tuple[Version, Snapshot]] = {}

    async def evaluator(
        self, region: str, halted: frozenset[str] = frozenset(), policy_age_s: float = 0.0
    ) -> Evaluator:
        """The evaluator of a node in this region whose policy is the newest, confirmed `policy_age_s` ago."""
        policy = await self._publisher.policy(region)
        cached = self._snapshots.get(region)
        if cached is None or cached[0] != policy.version:
            cached = self._snapshots[region] = (policy.version, build(policy.resources))
        return Evaluator(cached[1], halted=halted, frozen=frozen_rollouts(cached[1], policy_age_s))

    async def explain(self, agent: Agent) -> dict[str, Any]:
        """Why an agent gets what it gets."""
        node = self._fleet.census.nodes[agent.node]
        evaluator = await self.evaluator(node.region, frozenset(node.halted), node.policy_age_s or 0.0)
        state = link_pb2.AgentState.FromString((await self._fleet.records.row(agent)).state)
        explanation = explain_agent(
            evaluator, state, region=node.region, trusted=node.trusted, withheld=node.blob_problems
        )
        if not node.connected:
            explanation["notes"].append(f"node {agent.node} is offline: it uses the last policy that it received")
        return explanation

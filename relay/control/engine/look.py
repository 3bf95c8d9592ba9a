"""What has become of a rollout among the agents that are known: counted, judged by nobody yet."""

from __future__ import annotations

import dataclasses
from collections import Counter

from relay.aio.clock import Clock
from relay.control.fleet.agents import NodeState
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.targets import Targets, is_same
from relay.control.ledger.state import State
from relay.control.regions.publisher import Publisher
from relay.control.rollouts import gates
from relay.control.rollouts.contents import Contents
from relay.control.rollouts.counts import Counts, Look, RegionView, Troubled
from relay.control.rollouts.revision import GlobalPackages
from relay.control.rollouts.rollout import GOING, Rollout
from relay.policy import rollout as buckets

MOST_TROUBLED = 20
"""Agents that are named when a rollout is shown."""


class Survey:
    """Reads off the fleet what rollouts have to know."""

    def __init__(self, fleet: Fleet, targets: Targets, publisher: Publisher, *, clock: Clock) -> None:
        self._fleet = fleet
        self._targets = targets
        self._publisher = publisher
        self._clock = clock

    def look(self, rollout: Rollout, state: State) -> Look:
        """What is known now of a rollout.

        Args:
            state: what is in force.
        """
        assignment = state.assignments[rollout.assignment]
        now_ms = self._clock.unix_ms()
        tally: Counter[tuple[str, Counts]] = Counter()
        goals = []
        troubled: list[Troubled] = []
        made = Contents(rollout, state.pinned)
        gone = {key for key, node in self._fleet.nodes.items() if self._fleet.is_gone(node)}
        for target, agent in self._targets.concerned(rollout, state):
            contents = made.of(target)
            if is_same(contents, target, assignment.layers):
                continue
            goals.append((target.region, agent.agent_id))
            below = buckets.bucket(rollout.name, agent.agent_id) < rollout.threshold(target.region)
            on = rollout.state in GOING and below
            if contents is None:
                one = Counts(targets=int(on))
            else:
                case = gates.Case(
                    rollout,
                    *contents,
                    on_candidate=on,
                    falls=target.falls,
                    reports_status=agent.reports(rollout.candidate.kind),
                    retry=assignment.retry,
                    now_ms=now_ms,
                    node_now_ms=now_ms - self._fleet.nodes[agent.node].behind_ms,
                    is_last=rollout.stage + 1 == len(rollout.strategy.stages),
                )
                offering = agent.offering(rollout.candidate.kind)
                subject = agent if agent.node not in gone else dataclasses.replace(agent, connected=False)
                one = gates.count(subject, offering, case)
                if len(troubled) < MOST_TROUBLED and (found := gates.trouble(agent, offering, case, one)):
                    troubled.append(Troubled(agent.agent_id, target.region, *found))
            tally[target.region, one] += 1
        counts: dict[str, Counts] = {}
        for (region, one), number in tally.items():
            counts[region] = counts.get(region, Counts()) + one * number
        concerned = {region: total for region, total in counts.items() if total.targets or total.holding}
        views = {region: self._region_view(region, rollout, total, made) for region, total in concerned.items()}
        return Look(views, goals, troubled)

    def failed(self, rollout: Rollout, state: State) -> list[Troubled]:
        """Agents that could not apply the candidate of a rollout, over or not; some of them where there are many.

        Args:
            state: what is in force.
        """
        made = Contents(rollout, state.pinned)
        found: list[Troubled] = []
        for agent in self._fleet.agents.values():
            region = self._fleet.nodes[agent.node].region
            for failure in agent.offering(rollout.candidate.kind).failed:
                given = made.candidate(region, self._fleet.facts_of(agent))
                if (failure.slot, failure.content_hash) == given and len(found) < MOST_TROUBLED:
                    found.append(Troubled(agent.agent_id, region, "failed", failure.error_message))
        return found

    def nodes_of(self, region: str) -> list[NodeState]:
        """Those of a region that are waited for."""
        nodes = self._fleet.nodes.values()
        return [n for n in nodes if n.region == region and (n.agents or n.connected) and not self._fleet.is_gone(n)]

    def yet_to_fetch(self, rollout: Rollout, seen: Look, state: State) -> str:
        """What stands in the way of a rollout that begins when its regions have the files; empty for nothing."""
        candidate = rollout.candidate
        if not isinstance(candidate, GlobalPackages) or not candidate.prefetch or any(rollout.thresholds.values()):
            return ""
        wanted = {f.sha256 for p in state.pinned.packages(candidate) for f in p.files}
        regions = {region for region, _ in seen.goals}
        for node in self._fleet.nodes.values():
            missing = len(wanted - node.blobs) if node.connected and node.region in regions else 0
            if missing:
                return f"region {node.region} has not fetched {missing} of the {len(wanted)} files"
        return ""

    def _region_view(self, region: str, rollout: Rollout, counts: Counts, made: Contents) -> RegionView:
        nodes = self.nodes_of(region)
        unheard = [n for n in nodes if not self._fleet.is_heard(n)]
        resource = f"{rollout.candidate.kind}/{rollout.assignment}"
        refused = [r["reason"] for n in nodes for r in n.refusals if r["name"] in (resource, "policy")]
        if not made.renders(region):
            refused.append("its values cannot be resolved there")
        return RegionView(
            counts,
            connected=not unheard,
            catching_up=bool(unheard) and all(n.connected and not n.verified for n in unheard),
            current=all(self._has_taken(n, rollout.assignment) for n in nodes),
            halted="; ".join(n.halted[rollout.name] for n in nodes if rollout.name in n.halted),
            refused="; ".join(dict.fromkeys(refused)),
        )

    def _has_taken(self, node: NodeState, name: str) -> bool:
        """Whether a node has what is in force of an assignment: not where it refused the policy, or holds a newer one."""
        if node.ahead is not None:
            return False
        if node.sender is None:
            return True  # it cannot be heard, which is counted elsewhere
        return self._publisher.has(node.region, node.sender.acked, name) and not node.sender.refused

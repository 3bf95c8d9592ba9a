"""Counting the targets of a rollout in one pass. Agents that gates cannot tell apart are evaluated once."""

from __future__ import annotations

from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Census
from relay.control.fleet.targets import Group
from relay.control.ledger.state import State
from relay.control.rollouts import gates
from relay.control.rollouts.counts import Counts, TroubledAgent
from relay.control.rollouts.rollout import GOING, Rollout
from relay.policy import rollout as buckets

MAX_TROUBLED = 20
"""How many agents with problems a rollout lists."""


class Tally:
    """Counts the targets of a rollout.

    Args:
        state: the state of the ledger.
        now_ms: Unix milliseconds.
    """

    def __init__(self, census: Census, rollout: Rollout, state: State, *, now_ms: int) -> None:
        self._rollout = rollout
        self._retry = state.assignments[rollout.assignment].retry
        self._late_ms = gates.most_silent_ms(rollout)
        self._stage_is_late = now_ms - rollout.stage_started_ms >= self._late_ms
        nodes = list(census.nodes.values())
        self._own_now_ms = now_ms
        """The time by our own clock, for nodes that have just connected."""
        self._now_ms = {node.key: now_ms - node.behind_ms for node in nodes}
        """Node → the same moment by its clock, which dates the events of its agents."""
        self._gone = {node.key for node in nodes if census.is_gone(node)}
        self._regions: dict[str, list[tuple[Counts, int]]] = {}
        self.troubled: list[TroubledAgent] = []
        """Some of the agents with problems on the candidate's side."""

    @property
    def regions(self) -> frozenset[str]:
        """Regions that have targets."""
        return frozenset(region for region, counts in self._regions.items() if counts)

    def counts(self) -> dict[str, Counts]:
        """Region → counts of its targets."""
        totals: dict[str, Counts] = {}
        for region, entries in self._regions.items():
            total = Counts()
            for one, number in entries:
                total += one * number
            totals[region] = total
        return totals

    def add(self, group: Group) -> None:
        """Count a group of targets."""
        rollout, region = self._rollout, group.target.region
        entries = self._regions.setdefault(region, [])
        kind = rollout.candidate.kind
        threshold = rollout.threshold(region) if rollout.state in GOING else buckets.NOBODY
        is_everyone = threshold >= buckets.EVERYONE
        name, now_ms, late_ms, gone = rollout.name, self._now_ms, self._late_ms, self._gone
        by_key: dict[tuple[object, ...], list[Agent]] = {}
        for agent in group.agents:
            node_now_ms = now_ms.get(agent.node, self._own_now_ms)
            key = (
                is_everyone or (threshold > 0 and buckets.bucket(name, agent.agent_id) < threshold),
                agent.offering(kind),
                agent.connected and agent.node not in gone,
                agent.healthy,
                node_now_ms - agent.offered_ms(kind) >= late_ms,
                node_now_ms - agent.changed_ms >= gates.LASTING_MS,
                agent.capabilities,
            )
            if key in by_key:
                by_key[key].append(agent)
            else:
                by_key[key] = [agent]
        for (on, _, connected, _, late, lasting, _), agents in by_key.items():
            entries.append(
                (self._judge(group, agents, bool(on), bool(connected), bool(late), bool(lasting)), len(agents))
            )

    def _judge(self, group: Group, agents: list[Agent], on: bool, connected: bool, late: bool, lasting: bool) -> Counts:
        """The counts for one of several agents that gates cannot tell apart."""
        if group.contents is None:
            return Counts(targets=int(on))
        rollout, agent = self._rollout, agents[0]
        kind = rollout.candidate.kind
        case = gates.Case(
            rollout,
            *group.contents,
            on_candidate=on,
            falls=group.target.falls,
            reports_status=agent.reports(kind),
            retry=self._retry,
            stage_is_late=self._stage_is_late,
            offer_is_late=late,
            is_lasting=lasting,
            is_last=rollout.stage + 1 == len(rollout.strategy.stages),
        )
        one = gates.count(gates.Subject(connected, agent.healthy), agent.offering(kind), case)
        for troubled in agents[: MAX_TROUBLED - len(self.troubled)]:
            if (trouble := gates.trouble(troubled.last_error, troubled.offering(kind), case, one)) is None:
                break
            self.troubled.append(TroubledAgent(troubled.agent_id, group.target.region, *trouble))
        return one

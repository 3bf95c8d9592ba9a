"""What a rollout's targets come to, counted in one pass: agents that gates cannot tell from each other are judged once."""

from __future__ import annotations

from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Census
from relay.control.fleet.targets import Group
from relay.control.ledger.state import State
from relay.control.rollouts import gates
from relay.control.rollouts.counts import Counts, Troubled
from relay.control.rollouts.rollout import GOING, Rollout
from relay.policy import rollout as buckets

MOST_TROUBLED = 20
"""Agents that are named when a rollout is shown."""


class Tally:
    """Counts one rollout.

    Args:
        state: what is in force.
        now_ms: Unix milliseconds.
    """

    def __init__(self, census: Census, rollout: Rollout, state: State, *, now_ms: int) -> None:
        self._rollout = rollout
        self._retry = state.assignments[rollout.assignment].retry
        self._late_ms = gates.most_silent_ms(rollout)
        self._stage_is_late = now_ms - rollout.stage_started_ms >= self._late_ms
        nodes = list(census.nodes.values())
        self._here_ms = now_ms
        """By our own clock: for nodes that have just come."""
        self._now_ms = {node.key: now_ms - node.behind_ms for node in nodes}
        """Node → the same moment by its clock, which dates what its agents do."""
        self._gone = {node.key for node in nodes if census.is_gone(node)}
        self._regions: dict[str, list[tuple[Counts, int]]] = {}
        self.troubled: list[Troubled] = []
        """Some of those on the candidate's side that are not well."""

    @property
    def regions(self) -> frozenset[str]:
        """Where there are targets."""
        return frozenset(region for region, counted in self._regions.items() if counted)

    def counts(self) -> dict[str, Counts]:
        """Region → what its targets come to."""
        found: dict[str, Counts] = {}
        for region, counted in self._regions.items():
            total = Counts()
            for one, number in counted:
                total += one * number
            found[region] = total
        return found

    def add(self, group: Group) -> None:
        """Count some targets."""
        rollout, region = self._rollout, group.target.region
        counted = self._regions.setdefault(region, [])
        kind = rollout.candidate.kind
        threshold = rollout.threshold(region) if rollout.state in GOING else buckets.NOBODY
        is_everyone = threshold >= buckets.EVERYONE
        name, now_ms, late_ms, gone = rollout.name, self._now_ms, self._late_ms, self._gone
        alike: dict[tuple[object, ...], list[Agent]] = {}
        for agent in group.agents:
            here_ms = now_ms.get(agent.node, self._here_ms)
            key = (
                is_everyone or (threshold > 0 and buckets.bucket(name, agent.agent_id) < threshold),
                agent.offering(kind),
                agent.connected and agent.node not in gone,
                agent.healthy,
                here_ms - agent.offered_ms(kind) >= late_ms,
                here_ms - agent.changed_ms >= gates.LASTING_MS,
                agent.capabilities,
            )
            if key in alike:
                alike[key].append(agent)
            else:
                alike[key] = [agent]
        for (on, _, connected, _, late, lasting, _), agents in alike.items():
            counted.append(
                (self._judge(group, agents, bool(on), bool(connected), bool(late), bool(lasting)), len(agents))
            )

    def _judge(self, group: Group, agents: list[Agent], on: bool, connected: bool, late: bool, lasting: bool) -> Counts:
        """What each of some agents comes to that are alike in all that gates look at."""
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
        for troubled in agents[: MOST_TROUBLED - len(self.troubled)]:
            if (trouble := gates.trouble(troubled.last_error, troubled.offering(kind), case, one)) is None:
                break
            self.troubled.append(Troubled(troubled.agent_id, group.target.region, *trouble))
        return one

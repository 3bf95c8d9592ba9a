"""What is known of the agents that rollouts are for: whom one is for, and what has become of it there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent, NodeState
from relay.control.fleet.fleet import Fleet
from relay.control.rollouts import gates
from relay.control.rollouts.assignment import Advance, AssignmentState
from relay.control.rollouts.contents import Contents
from relay.control.rollouts.model import GOING, Counts, Look, RegionView, Rollout, Troubled
from relay.control.rollouts.targets import Claim, Population, Target, select
from relay.link.protocol import Version
from relay.policy import rollout as buckets
from relay.policy.model import Selector

MOST_TROUBLED = 20
"""Agents that are named when a rollout is shown."""
TARGET_AGE_MS = 24 * 3600 * 1000
"""Agents that were away for longer are no targets."""
_KEPT_MS = 60_000
"""How late it may be noticed that an agent was away for too long."""


class Survey:
    """Reads off the fleet what rollouts have to know.

    Args:
        version: of the policy that a region should have; None for one that never asked.
    """

    def __init__(self, fleet: Fleet, *, clock: Clock, version: Callable[[str], Version | None]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._version = version
        self._sorted: dict[str, tuple[int, int, Population[bytes]]] = {}
        """Kind of assignment → (edition of the fleet, when it was sorted, uids of the agents that take it)."""

    def targets_of(self, rollout: Rollout, advance: Advance) -> list[tuple[str, str]]:
        """(region, agent id) of every agent for which a rollout changes something, where `advance` is in force."""
        contents = Contents(rollout, advance)
        layers = advance.states[rollout.assignment].layers
        return [
            (target.region, target.facts.agent_id)
            for target, _ in self._targets(rollout, advance)
            if not _is_same(contents.of(target), target, layers)
        ]

    def look(self, state: AssignmentState, rollout: Rollout, advance: Advance) -> Look:
        """What is known now of a rollout.

        Args:
            advance: what is in force.
        """
        now_ms = self._clock.unix_ms()
        tally: Counter[tuple[str, Counts]] = Counter()
        goals = []
        troubled: list[Troubled] = []
        made = Contents(rollout, advance)
        gone = {key for key, node in self._fleet.nodes.items() if self._fleet.is_gone(node)}
        for target, agent in self._targets(rollout, advance):
            contents = made.of(target)
            if _is_same(contents, target, state.layers):
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
                    retry=state.retry,
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

    def failed(self, rollout: Rollout, advance: Advance) -> list[Troubled]:
        """Agents that could not apply the candidate of a rollout, over or not; some of them where there are many.

        Args:
            advance: what is in force.
        """
        made = Contents(rollout, advance)
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

    def _targets(self, rollout: Rollout, advance: Advance) -> Iterator[tuple[Target, Agent]]:
        kind = rollout.candidate.kind
        others = [
            Claim.of(other.name, revision)
            for other in advance.states.values()
            if other.name != rollout.assignment and other.kind == kind
            for revision in other.in_force
        ]
        stable = Claim.of(rollout.assignment, rollout.stable) if rollout.stable is not None else None
        candidate = Claim.of(rollout.assignment, rollout.candidate)
        selectors = [*_selectors(advance, kind), *_selectors_of(rollout)]
        fleet = self._fleet
        population = self._population(kind, selectors)
        for claimed, uids in select(population, candidate, stable, rollout.strategy.target_selector, others):
            for uid in uids:
                agent = fleet.agents[uid]
                yield Target(fleet.nodes[agent.node].region, fleet.facts_of(agent), *claimed), agent

    def _population(self, kind: str, selectors: list[Selector]) -> Population[bytes]:
        """All agents that may be targets of a kind. Many rollouts ask while nothing has changed."""
        now_ms = self._clock.unix_ms()
        if kind in self._sorted:
            edition, sorted_ms, population = self._sorted[kind]
            is_fresh = edition == self._fleet.edition and 0 <= now_ms - sorted_ms < _KEPT_MS
            if is_fresh and population.tells(selectors):
                return population
        population = Population(((self._fleet.facts_of(a), a.uid) for a in self._newest(kind, now_ms)), selectors)
        self._sorted[kind] = self._fleet.edition, now_ms, population
        return population

    def _newest(self, kind: str, now_ms: int) -> Iterable[Agent]:
        """Of all agents of one id the one that was heard under it last."""
        newest: dict[str, Agent] = {}
        for agent in self._fleet.agents.values():
            if (
                agent.accepts(kind)
                and agent.agent_id
                and (agent.connected or agent.changed_ms >= now_ms - TARGET_AGE_MS)
            ):
                other = newest.get(agent.agent_id)
                if other is None or other.session_started_ms <= agent.session_started_ms:
                    newest[agent.agent_id] = agent
        return newest.values()

    def _region_view(self, region: str, rollout: Rollout, counts: Counts, made: Contents) -> RegionView:
        wanted = self._version(region)
        nodes = self.nodes_of(region)
        unheard = [n for n in nodes if not self._fleet.is_heard(n)]
        resource = f"{rollout.candidate.kind}/{rollout.assignment}"
        refused = [r["reason"] for n in nodes for r in n.refusals if r["name"] in (resource, "policy")]
        if not made.renders(region):
            refused.append("its values do not resolve there")
        return RegionView(
            counts,
            connected=not unheard,
            catching_up=bool(unheard) and all(n.connected and not n.verified for n in unheard),
            current=all(_has_taken(n, wanted) for n in nodes),
            halted="; ".join(n.halted[rollout.name] for n in nodes if rollout.name in n.halted),
            refused="; ".join(dict.fromkeys(refused)),
        )


def _has_taken(node: NodeState, wanted: Version | None) -> bool:
    """Whether a node has the policy that is in force: not where it refused it as a whole, or holds a newer one."""
    if node.ahead is not None:
        return False
    return wanted is None or node.sender is None or (node.sender.acked == wanted and not node.sender.refused)


def _selectors(advance: Advance, kind: str) -> Iterator[Selector]:
    """Of all that agents may be asked for while this is in force."""
    for state in advance.states.values():
        if state.kind == kind:
            for revision in state.revisions:
                yield revision.selector
            for rollout in (state.rollout, state.pending):
                if rollout is not None:
                    yield from _selectors_of(rollout)


def _selectors_of(rollout: Rollout) -> Iterator[Selector]:
    yield rollout.strategy.target_selector
    yield rollout.candidate.selector
    if rollout.stable is not None:
        yield rollout.stable.selector


def _is_same(contents: tuple[object, object] | None, target: Target, layers: Iterable[Rollout]) -> bool:
    """Whether a rollout changes nothing for an agent: it gets what it has, and has it of the stable revision."""
    if contents is None or contents[0] != contents[1]:
        return False
    agent_id, region = target.facts.agent_id, target.region
    return not any(buckets.bucket(layer.name, agent_id) < layer.threshold(region) for layer in layers)

"""Whom rollouts are for, of the agents that are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.state import State
from relay.control.rollouts.contents import Contents
from relay.control.rollouts.rollout import Rollout
from relay.control.rollouts.targets import Contender, Population, Target, select
from relay.policy import rollout as buckets
from relay.policy.model import Selector

TARGET_AGE_MS = 24 * 3600 * 1000
"""Agents that were away for longer are no targets."""
_KEPT_MS = 60_000
"""How late it may be noticed that an agent was away for too long."""


class Targets:
    """Finds them. All agents are sorted by what selectors see of them, once for all rollouts that ask."""

    def __init__(self, fleet: Fleet, *, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._sorted: dict[str, tuple[int, int, Population[bytes]]] = {}
        """Kind of assignment → (edition of the fleet, when it was sorted, uids of the agents that take it)."""

    def of(self, rollout: Rollout, state: State) -> list[tuple[str, str]]:
        """(region, agent id) of every agent for which a rollout changes something, where `state` is in force."""
        contents = Contents(rollout, state.pinned)
        layers = state.assignments[rollout.assignment].layers
        return [
            (target.region, target.facts.agent_id)
            for target, _ in self.concerned(rollout, state)
            if not is_same(contents.of(target), target, layers)
        ]

    def concerned(self, rollout: Rollout, state: State) -> Iterator[tuple[Target, Agent]]:
        """Every agent that a rollout's assignment takes, before or after, where `state` is in force."""
        kind = rollout.candidate.kind
        others = [
            Contender.of(other.name, revision)
            for other in state.assignments.values()
            if other.name != rollout.assignment and other.kind == kind
            for revision in other.in_force
        ]
        stable = Contender.of(rollout.assignment, rollout.stable) if rollout.stable is not None else None
        candidate = Contender.of(rollout.assignment, rollout.candidate)
        selectors = [*_selectors(state, kind), *_selectors_of(rollout)]
        fleet = self._fleet
        population = self._population(kind, selectors)
        for sides, uids in select(population, candidate, stable, rollout.strategy.target_selector, others):
            for uid in uids:
                agent = fleet.agents[uid]
                yield Target(fleet.nodes[agent.node].region, fleet.facts_of(agent), *sides), agent

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


def is_same(contents: tuple[object, object] | None, target: Target, layers: Iterable[Rollout]) -> bool:
    """Whether a rollout changes nothing for an agent: it gets what it has, and has it of the stable revision."""
    if contents is None or contents[0] != contents[1]:
        return False
    agent_id, region = target.facts.agent_id, target.region
    return not any(buckets.bucket(layer.name, agent_id) < layer.threshold(region) for layer in layers)


def _selectors(state: State, kind: str) -> Iterator[Selector]:
    """Of all that agents may be asked for while this is in force."""
    for assignment in state.assignments.values():
        if assignment.kind == kind:
            for revision in assignment.revisions:
                yield revision.selector
            for rollout in (assignment.rollout, assignment.pending):
                if rollout is not None:
                    yield from _selectors_of(rollout)


def _selectors_of(rollout: Rollout) -> Iterator[Selector]:
    yield rollout.strategy.target_selector
    yield rollout.candidate.selector
    if rollout.stable is not None:
        yield rollout.stable.selector

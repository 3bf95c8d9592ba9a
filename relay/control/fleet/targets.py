"""Which known agents a rollout targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Census
from relay.control.ledger.state import State
from relay.control.rollouts.contents import Contents, Given
from relay.control.rollouts.counts import TargetList
from relay.control.rollouts.rollout import Rollout
from relay.control.rollouts.targets import Contender, Selection, Target
from relay.policy import rollout as buckets

TARGET_AGE_MS = 24 * 3600 * 1000
"""Agents that have been away for longer are not targets."""


class Group(NamedTuple):
    """Agents of one region for which a rollout does the same."""

    target: Target
    """One of them."""
    contents: tuple[Given | None, Given | None] | None
    """(content of the candidate, content before); None if their region cannot render it."""
    agents: Iterator[Agent]


class Targets:
    """Finds the targets of rollouts."""

    def __init__(self, census: Census, *, clock: Clock) -> None:
        self._census = census
        self._clock = clock

    def of(self, rollout: Rollout, state: State) -> TargetList:
        """The targets of a rollout: every agent for which it changes something, given `state`."""
        groups = self.groups(rollout, state)
        regions = {group.target.region for group in groups if next(group.agents, None) is not None}
        return TargetList(frozenset(regions), lambda: self.each(rollout, state))

    def each(self, rollout: Rollout, state: State) -> Iterator[tuple[str, str]]:
        """(region, agent id) of each target."""
        for group in self.groups(rollout, state):
            for agent in group.agents:
                yield group.target.region, agent.agent_id

    def groups(self, rollout: Rollout, state: State) -> Iterator[Group]:
        """The targets of a rollout, in groups."""
        kind, assignment = rollout.candidate.kind, state.assignments[rollout.assignment]
        contents = Contents(rollout, state.pinned)
        others = [
            Contender.of(other.name, revision)
            for other in state.assignments.values()
            if other.name != rollout.assignment and other.kind == kind
            for revision in other.in_force
        ]
        stable = Contender.of(rollout.assignment, rollout.stable) if rollout.stable is not None else None
        candidate = Contender.of(rollout.assignment, rollout.candidate)
        strategy = rollout.strategy.target_selector
        selection = Selection(candidate, stable, strategy, others, contents.selectors)
        for region, vector, agents in self._census.partition(selection.matcher):
            sides = selection.sides(vector)
            first = next(agents, None) if sides is not None else None
            if sides is None or first is None:
                continue
            target = Target(region, first.facts, *sides)
            given = contents.of(target)
            eligible = self._eligible(kind, chain((first,), agents))
            if given is not None and given[0] == given[1]:
                # Candidate and stable are equal: only agents that an earlier rollout reached will change.
                if not assignment.layers:
                    continue
                eligible = _reached(eligible, assignment.layers, region)
            yield Group(target, given, eligible)

    def _eligible(self, kind: str, agents: Iterable[Agent]) -> Iterator[Agent]:
        """Filter agents that accept assignments of a kind; of several with one id, only the newest."""
        oldest_ms, several = self._clock.unix_ms() - TARGET_AGE_MS, self._census.duplicates

        def is_eligible(agent: Agent) -> bool:
            return agent.accepts(kind) and (agent.connected or agent.changed_ms >= oldest_ms)

        newest: dict[str, bytes] = {}
        for agent in agents:
            name = agent.agent_id
            if not (name and is_eligible(agent)):
                continue
            if name in several:
                if name not in newest:
                    newest[name] = max(
                        filter(is_eligible, self._census.by_id(name)), key=attrgetter("age"), default=agent
                    ).uid
                if agent.uid != newest[name]:
                    continue
            yield agent


def _reached(agents: Iterable[Agent], layers: Iterable[Rollout], region: str) -> Iterator[Agent]:
    """Filter agents that an earlier rollout reached."""
    reached = [(layer.name, layer.threshold(region)) for layer in layers]
    for agent in agents:
        if any(buckets.bucket(name, agent.agent_id) < threshold for name, threshold in reached):
            yield agent

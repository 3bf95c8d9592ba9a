"""Whom rollouts are for, of a fleet that reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from relay.control.fleet import targets as module
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.targets import TARGET_AGE_MS, Targets
from relay.control.ledger.catalog import Catalog
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import Rollout
from relay.control.rollouts.targets import Population
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import CONFIG
from relay.testing.clock import ManualClock
from tests.control.conftest import NOW_MS
from tests.control.reports import ONE, entry, up
from tests.control.rollouts.made import revision, rollout
from tests.policy.made import RATE, template

TO_PROD = rollout(revision(2, tier="prod"))


def state(*rollouts: Rollout) -> State:
    states = {
        r.assignment: AssignmentState(r.assignment, CONFIG, stable=r.stable, declared=r.candidate, rollout=r)
        for r in rollouts
    }
    return State(Catalog().put(template({"rate": "{{.rate}}"}, RATE)), states)


class Stand:
    """Agents of one node, and who of them a rollout is for."""

    def __init__(self, fleet: Fleet, clock: ManualClock) -> None:
        self.fleet = fleet
        self.targets = Targets(fleet, clock=clock)
        self._sequence = 0

    async def report(self, *agents: link_pb2.AgentEntry) -> None:
        self._sequence += 1
        await self.fleet.report(ONE, link_pb2.StatusReport(sequence=self._sequence, agents=agents))

    def of(self, one: Rollout, *others: Rollout) -> list[str]:
        return sorted(agent_id for _, agent_id in self.targets.of(one, state(one, *others)))


@pytest.fixture
async def stand(fleet: Fleet, clock: ManualClock) -> Stand:
    await up(fleet, ONE)
    return Stand(fleet, clock)


@pytest.fixture
def sorting() -> Iterator[list[int]]:
    """One entry for each time that all agents were gone through."""
    seen: list[int] = []

    def counted(*args: Any) -> Any:
        seen.append(1)
        return Population(*args)

    with patch.object(module, "Population", counted):
        yield seen


async def test_many_rollouts_ask_and_the_agents_are_sorted_once(stand: Stand, sorting: list[int]) -> None:
    await stand.report(entry("a", tier="prod"), entry("b", tier="dev"))
    others = [rollout(revision(3, tier="dev"), name=f"o{i}-1", assignment=f"o{i}") for i in range(5)]
    for one in (TO_PROD, *others):
        stand.of(one, *(o for o in (TO_PROD, *others) if o is not one))
    assert len(sorting) == 1
    await stand.report(entry("c", tier="prod"))
    assert stand.of(TO_PROD) == ["a", "b", "c"], "who has come since is seen at once"
    assert len(sorting) == 2


async def test_an_agent_that_is_another_kind_of_agent_now_is_no_target(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"))
    assert stand.of(TO_PROD) == ["a"]
    await stand.report(entry("a", tier="dev", started=2))
    assert stand.of(TO_PROD) == ["a"], "it had the stable revision, which includes every agent"
    assert stand.of(rollout(revision(2, tier="prod"), stable=None)) == []


async def test_who_was_away_for_a_day_is_no_target(stand: Stand, clock: ManualClock) -> None:
    gone = entry("a", tier="prod", connected=False)
    await stand.report(gone, entry("b", tier="prod"))
    stand.fleet.agents[gone.instance_uid].changed_ms = NOW_MS
    assert stand.of(TO_PROD) == ["a", "b"]
    clock.advance(TARGET_AGE_MS / 1000 + 1)
    assert stand.of(TO_PROD) == ["b"], "noticed although the fleet has not changed"

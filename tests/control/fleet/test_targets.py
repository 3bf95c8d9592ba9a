"""Targets of rollouts in a fleet that has reported."""

from __future__ import annotations

import dataclasses

import pytest

from relay.control.fleet.fleet import Fleet
from relay.control.fleet.targets import TARGET_AGE_MS, Targets
from relay.control.ledger.catalog import Catalog
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import Rollout
from relay.pb.relay.v1 import link_pb2
from relay.policy import rollout as buckets
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
    """Agents of one node, and which of them a rollout targets."""

    def __init__(self, fleet: Fleet, clock: ManualClock) -> None:
        self.fleet = fleet
        self.targets = Targets(fleet.census, clock=clock)
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


async def test_new_agents_are_seen_at_once(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"), entry("b", tier="dev"))
    others = [rollout(revision(3, tier="dev"), name=f"o{i}-1", assignment=f"o{i}") for i in range(5)]
    for one in (TO_PROD, *others):
        stand.of(one, *(o for o in (TO_PROD, *others) if o is not one))
    await stand.report(entry("c", tier="prod"))
    assert stand.of(TO_PROD) == ["a", "b", "c"]


async def test_newest_capable_namesake_is_the_target(stand: Stand) -> None:
    old, new = entry("a", started=1, uid=b"1" * 16), entry("a", started=2, uid=b"2" * 16)
    await stand.report(old, new)
    goals = stand.targets.of(TO_PROD, state(TO_PROD))
    assert (bool(goals), goals.regions, list(goals)) == (True, frozenset({"eu"}), [("eu", "a")])
    await stand.report(entry("a", started=2, uid=b"2" * 16, accepts=False))
    ((group),) = stand.targets.groups(TO_PROD, state(TO_PROD))
    assert [agent.uid for agent in group.agents] == [b"1" * 16]


async def test_unchanged_agent_is_a_target_only_under_an_earlier_rollout(stand: Stand) -> None:
    await stand.report(entry("a"), entry("b"))
    same = rollout(revision(1), stable=revision(1))
    assert stand.of(same) == []
    held = state(same)
    layer = dataclasses.replace(TO_PROD, thresholds={"": buckets.bucket(TO_PROD.name, "a") + 1})
    lone = {"a": bucket_of("a") < bucket_of("b")}["a"]
    layered = dataclasses.replace(held.assignments["a"], layers=(layer,))
    held = dataclasses.replace(held, assignments={"a": layered})
    expected = ["a"] if lone else ["a", "b"]
    assert sorted(name for _, name in stand.targets.of(same, held)) == expected


def bucket_of(name: str) -> int:
    return buckets.bucket(TO_PROD.name, name)


async def test_agent_whose_attributes_changed_is_no_target(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"))
    assert stand.of(TO_PROD) == ["a"]
    await stand.report(entry("a", tier="dev", started=2))
    assert stand.of(TO_PROD) == ["a"], "it had the stable revision, which includes every agent"
    assert stand.of(rollout(revision(2, tier="prod"), stable=None)) == []


async def test_agent_away_for_a_day_is_no_target(stand: Stand, clock: ManualClock) -> None:
    gone = entry("a", tier="prod", connected=False)
    await stand.report(gone, entry("b", tier="prod"))
    stand.fleet.census.agents[gone.instance_uid].changed_ms = NOW_MS
    assert stand.of(TO_PROD) == ["a", "b"]
    clock.advance(TARGET_AGE_MS / 1000 + 1)
    assert stand.of(TO_PROD) == ["b"], "noticed although the fleet has not changed"

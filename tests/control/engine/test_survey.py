from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from relay.control.app import ControlPlane
from relay.control.engine import survey as module
from relay.control.engine.survey import TARGET_AGE_MS, Survey
from relay.control.rollouts.assignment import Advance, AssignmentState
from relay.control.rollouts.model import ALL, Rollout
from relay.control.rollouts.targets import Population
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import CONFIG
from relay.testing.clock import ManualClock
from tests.conftest import Programs
from tests.control.reports import ONE, entry, up
from tests.control.rollouts.made import revision, rollout
from tests.policy.test_template import RATE, template

NOW_MS = 10 * TARGET_AGE_MS


class Stand:
    """A survey of a real fleet, with one rollout to production agents."""

    def __init__(self, plane: ControlPlane) -> None:
        self.fleet = plane.fleet
        self.clock = ManualClock(NOW_MS)
        self.survey = Survey(plane.fleet, clock=self.clock, version=lambda region: None)
        self.rollout = rollout(revision(2, tier="prod"))
        self._sequence = 0

    def advance(self, *others: Rollout) -> Advance:
        states = {
            r.assignment: AssignmentState(r.assignment, CONFIG, stable=r.stable, declared=r.candidate, rollout=r)
            for r in (self.rollout, *others)
        }
        return Advance(states, {"t@v1": template({"rate": "{{.rate}}"}, RATE)}, {})

    async def report(self, *agents: link_pb2.AgentEntry) -> None:
        self._sequence += 1
        await self.fleet.report(ONE, link_pb2.StatusReport(sequence=self._sequence, agents=agents))

    def targets(self, one: Rollout | None = None, advance: Advance | None = None) -> list[str]:
        found = self.survey.targets_of(one or self.rollout, advance or self.advance())
        return sorted(agent_id for _, agent_id in found)


@pytest.fixture
async def stand(programs: Programs) -> Stand:
    made = Stand(await programs.control_plane())
    await up(made.fleet, ONE)
    return made


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
    advance = stand.advance(*others)
    for one in (stand.rollout, *others):
        stand.targets(one, advance)
    assert len(sorting) == 1
    await stand.report(entry("c", tier="prod"))
    assert stand.targets() == ["a", "b", "c"], "who has come since is seen at once"
    assert len(sorting) == 2


async def test_an_agent_that_is_another_kind_of_agent_now_is_no_target(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"))
    assert stand.targets() == ["a"]
    await stand.report(entry("a", tier="dev", started=2))
    assert stand.targets() == ["a"], "it had the stable revision, which is for everybody"
    stand.rollout = rollout(revision(2, tier="prod"), stable=None)
    assert stand.targets() == []


async def test_who_was_away_for_a_day_is_no_target(stand: Stand) -> None:
    gone = entry("a", tier="prod", connected=False)
    await stand.report(gone, entry("b", tier="prod"))
    stand.fleet.agents[gone.instance_uid].changed_ms = NOW_MS
    assert stand.targets() == ["a", "b"]
    stand.clock.advance(TARGET_AGE_MS / 1000 + 1)
    assert stand.targets() == ["b"], "noticed although the fleet has not changed"


async def test_what_agents_say_is_counted_by_region(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"), entry("b", tier="prod"))
    advance = stand.advance()
    seen = stand.survey.look(advance.states["a"], stand.rollout, advance)
    assert list(seen.regions) == []
    assert sorted(seen.goals) == [("eu", "a"), ("eu", "b")]
    assert stand.survey.failed(stand.rollout, advance) == []
    assert [node.name for node in stand.survey.nodes_of("eu")] == ["one"]


async def test_a_node_that_holds_a_newer_manifest_has_not_taken_this_one(stand: Stand) -> None:
    await stand.report(entry("a", tier="prod"))
    going = dataclasses.replace(stand.rollout, thresholds=ALL)
    advance = stand.advance()
    assert stand.survey.look(advance.states["a"], going, advance).regions["eu"].current
    stand.fleet.node_ahead(ONE, (1, 9))
    assert not stand.survey.look(advance.states["a"], going, advance).regions["eu"].current

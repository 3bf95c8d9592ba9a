"""Counting the agents of a rollout from their reports."""

from __future__ import annotations

import dataclasses

import pytest

from relay.control.engine.look import Survey
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.targets import Targets
from relay.control.keys.trust import Trust
from relay.control.ledger.ledger import Ledger
from relay.control.regions.archive import Archive
from relay.control.regions.publisher import Publisher
from relay.control.rollouts.rollout import ALL
from relay.control.storage.database import Database
from relay.pb.relay.v1 import link_pb2
from relay.testing.clock import ManualClock
from tests.control.fleet.test_targets import TO_PROD, state
from tests.control.reports import ONE, entry, up


@pytest.fixture
async def survey(fleet: Fleet, database: Database, ledger: Ledger, trust: Trust, clock: ManualClock) -> Survey:
    await up(fleet, ONE)
    agents = [entry("a", tier="prod"), entry("b", tier="prod")]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    publisher = Publisher(database, ledger, Archive(database), trust, clock=clock)
    return Survey(fleet.census, Targets(fleet.census, clock=clock), publisher, clock=clock)


async def test_reports_are_counted_by_region(survey: Survey) -> None:
    seen = survey.look(TO_PROD, state(TO_PROD))
    assert list(seen.regions) == []
    assert sorted(seen.goals) == [("eu", "a"), ("eu", "b")]
    assert survey.failed(TO_PROD, state(TO_PROD)) == []
    assert [node.name for node in survey.nodes_of("eu")] == ["one"]


async def test_node_with_a_newer_manifest_has_not_taken_this_policy(survey: Survey, fleet: Fleet) -> None:
    going = dataclasses.replace(TO_PROD, thresholds=ALL)
    assert survey.look(going, state(going)).regions["eu"].current
    fleet.node_ahead(ONE, (1, 9))
    assert not survey.look(going, state(going)).regions["eu"].current

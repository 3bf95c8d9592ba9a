from __future__ import annotations

import dataclasses

import pytest

from relay.control.regions.archive import Archive
from relay.control.storage.database import Database
from relay.errors import NotFound
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.actors import ANN
from tests.wire import TestAgent


async def test_offered_configs_are_archived(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a", rate=5), assignment("b", rate=6, slot="extra"))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over("websocket", node.ports, "x")
    offered = (await agent.hello()).remote_config
    await eventually(lambda: any(a.config.hash == offered.config_hash for a in plane.fleet.census.agents.values()))
    await apply(plane, assignment("a", rate=7))
    found = await plane.archive.get(offered.config_hash.hex()[:12])
    assert found["hash"] == offered.config_hash.hex()
    assert {slot: item["body"].encode() for slot, item in found["slots"].items()} == {
        slot: item.body for slot, item in offered.config.config_map.items()
    }
    one = found["slots"][""]
    assert (await plane.archive.get(one["hash"]))["slots"][""] == one
    for wrong in ("abc", "z" * 12, "0" * 12):
        with pytest.raises(NotFound):
            await plane.archive.get(wrong)
    await programs.stop(plane)
    again = await programs.control_plane()
    assert await again.archive.get(offered.config_hash.hex()) == found
    await agent.close()


async def test_unused_configs_expire(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("a", rate=5))
    await plane.publisher.policy("eu")
    database: Database = plane.archive._database
    (held,) = plane.archive._known
    await plane.archive.expire({held}, 1 << 60)
    assert await plane.archive.get(held.hex())
    await plane.archive.expire(set(), 1)
    assert await plane.archive.get(held.hex()), "not old enough"
    await plane.archive.expire(set(), 1 << 60)
    fresh = Archive(database)
    await fresh.load()
    assert not fresh._known


async def test_long_ended_rollouts_expire(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("a", rate=5))
    await apply(plane, assignment("a", rate=6))
    await plane.history.expire(1 << 60)
    assert [r["name"] for r in await plane.status.history("a")] == ["a-2"]


async def test_assignment_can_be_undone(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("a", rate=5, selector="{labels: {tier: x}}"))
    await apply(plane, assignment("a", rate=6))
    earlier = await plane.history.undo_target("a")
    assert earlier.name == "a-1"
    await apply(plane, assignment("a", rate=6, priority=4) + "  observe_only: true\n")
    applied = await plane.documents.apply_revision("a", earlier.candidate, actor=ANN)
    assert applied.action == "configured"
    spec = plane.ledger.state.catalog.assignments["a"].spec
    assert (spec.values, spec.target_selector.labels) == ({"rate": 5}, {"tier": "x"})
    assert (spec.priority, spec.observe_only) == (0, False)
    assert plane.ledger.state.assignments["a"].latest == "a-4"
    assert (await plane.history.undo_target("a")).name == "a-3"
    assert (await plane.history.undo_target("a", "a-1")).name == "a-1"
    for name, rollout in (("b", ""), ("a", "a-9")):
        with pytest.raises(NotFound):
            await plane.history.undo_target(name, rollout)
    state = plane.ledger.state.assignments["a"]
    assert dataclasses.replace(state, number=0).declared == earlier.candidate

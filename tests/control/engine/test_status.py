from __future__ import annotations

import pytest
import sqlalchemy as sa

from relay.control.app import ControlPlane
from relay.errors import NotFound
from relay.pb.relay.v1 import link_pb2
from tests.conftest import TEMPLATE, assignment
from tests.control.actors import BOB
from tests.control.changing import change
from tests.control.ledger.made import NEEDS
from tests.control.reports import ONE, entry, up
from tests.control.texts import TWO_STAGES, staged


async def test_listing_shows_active_and_latest_rollouts(plane: ControlPlane) -> None:
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("x")]))
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a") + assignment("b", priority=1))
    await change(plane, staged(2))
    await change(plane, staged(3) + NEEDS)
    shown = [(r["name"], r["state"]) for r in await plane.status.listing()]
    assert shown == [("a-2", "running"), ("a-3", "pending_approval"), ("b-1", "running")]
    assert plane.status.counts() == {"running": 2, "pending_approval": 1}
    assert [view["name"] for view in plane.status.assignments()] == ["a", "b"]
    assert (await plane.status.of("a-2"))["stages"][0]["gate"]["verdict"] == "hold"
    await plane.actions.act("a-2", "rollback", BOB)
    assert (await plane.status.of("a-2"))["state"] == "rolling_back"


async def test_rejected_rollouts_and_history(plane: ControlPlane) -> None:
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a"))
    await change(plane, staged(2) + NEEDS, actor="eve")
    await plane.actions.act("a-2", "reject", BOB, reason="not on a Friday")
    assert [(r["name"], r["state"]) for r in await plane.status.listing()] == [
        ("a-1", "completed"),
        ("a-2", "rejected"),
    ]
    assert (await plane.status.of("a"))["reason"] == "not on a Friday", "its newest, also where it never went out"
    assert [r["name"] for r in await plane.status.history("a")] == ["a-1", "a-2"]
    await plane.documents.delete("ConfigAssignment", "a")
    assert [r["state"] for r in await plane.status.history("a")] == ["completed", "rejected"]
    assert (await plane.status.of("a-1"))["state"] == "completed", "also where its assignment is gone"
    with pytest.raises(NotFound, match="assignment b has no history"):
        await plane.status.history("b")


@pytest.mark.parametrize("loss", ["DELETE FROM rollouts", "UPDATE rollouts SET body = body || ' '"])
async def test_rollouts_in_memory_are_listed_despite_lost_rows(plane: ControlPlane, loss: str) -> None:
    await change(plane, TEMPLATE + assignment("a", rate=1))
    await change(plane, assignment("a", rate=2) + NEEDS, actor="eve")
    await plane.actions.act("a-2", "reject", BOB)
    async with plane.database.write() as connection:
        await connection.execute(sa.text(loss))
    assert [r["name"] for r in await plane.status.listing()] == ["a-1"]

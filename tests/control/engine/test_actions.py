"""People's actions on rollouts, without background tasks."""

from __future__ import annotations

import pytest

from relay.control.access.actor import Actor
from relay.control.app import ControlPlane
from relay.errors import Conflict, NotFound
from relay.pb.relay.v1 import link_pb2
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.actors import ANN, BOB, EVE
from tests.control.changing import change
from tests.control.ledger.made import NEEDS
from tests.control.reports import ONE, entry, up
from tests.control.texts import TWO_STAGES, staged


@pytest.fixture
async def going(plane: ControlPlane) -> ControlPlane:
    """A control plane with a staged rollout in progress."""
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("x"), entry("y")]))
    await apply(plane, TEMPLATE, TWO_STAGES, assignment("a"))
    await change(plane, staged(2))
    return plane


async def state_of(plane: ControlPlane, name: str) -> str:
    return str((await plane.status.of(name))["state"])


async def test_pause_and_resume(going: ControlPlane) -> None:
    assert await going.actions.act("a", "pause", BOB, reason="lunch") == "a-2"
    assert (await going.status.of("a-2"))["reason"] == "lunch"
    with pytest.raises(Conflict, match="a-2 is paused; it cannot be paused"):
        await going.actions.act("a-2", "pause", BOB)
    await going.actions.act("a-2", "resume", BOB)
    assert await state_of(going, "a-2") == "running"
    assert going.metrics.rollout_steps["paused"] == 1


async def test_second_promotion_of_a_stage_is_refused(going: ControlPlane) -> None:
    with pytest.raises(Conflict, match="to promote, name the stage"):
        await going.actions.act("a-2", "promote", BOB)
    await going.actions.act("a-2", "promote", BOB, stage=0)
    with pytest.raises(Conflict, match="is now in stage all"):
        await going.actions.act("a-2", "promote", EVE, stage=0)
    assert (await going.status.of("a-2"))["stages"][0]["gate"]["reason"] == "promoted by bob: no reason given"


@pytest.mark.parametrize(("action", "state"), [("rollback", "rolling_back"), ("abort", "aborted")])
async def test_counts_are_kept_after_rollback_and_abort(going: ControlPlane, action: str, state: str) -> None:
    await going.actions.act("a-2", action, BOB)
    status = await going.status.of("a-2")
    assert (status["state"], status["stages"][0]["counts"]["targets"]) == (state, 1)


async def test_ended_or_unknown_rollouts_cannot_be_rejected(going: ControlPlane) -> None:
    await change(going, staged(3) + NEEDS)
    await going.actions.act("a-3", "abort", BOB)
    assert await state_of(going, "a-3") == "aborted"
    with pytest.raises(Conflict, match="a-3 has ended"):
        await going.actions.act("a-3", "reject", BOB)
    with pytest.raises(NotFound):
        await going.actions.act("b-1", "reject", BOB)


async def test_retry_restarts_the_stage_and_forgives_failures(going: ControlPlane) -> None:
    assert await going.actions.retry("a-2", BOB) == "a-2"
    assert going.ledger.state.assignments["a"].retry == 1
    await going.actions.act("a-2", "rollback", BOB)
    with pytest.raises(Conflict, match="a-2 is rolling back; it cannot be tried again now"):
        await going.actions.retry("a-2", BOB)


async def test_retry_of_an_ended_rollout_needs_the_same_declaration(going: ControlPlane) -> None:
    await going.actions.act("a-2", "abort", BOB)
    await change(going, staged(3) + NEEDS, actor="boss")
    with pytest.raises(Conflict, match="a-2 is no longer what ConfigAssignment a asks for"):
        await going.actions.retry("a-2", EVE)
    await change(going, staged(2) + NEEDS, actor="boss")
    name = await going.actions.retry("a-2", EVE)
    assert await state_of(going, name) == "pending_approval", "a retry goes by the rules of today"
    await going.documents.delete("ConfigAssignment", "a")
    with pytest.raises((NotFound, Conflict)):
        await going.actions.retry("a-2", EVE)


async def test_retry_of_a_completed_rollout_forgives_failures(plane: ControlPlane) -> None:
    await change(plane, TEMPLATE + assignment("a") + assignment("b", priority=1))
    assert await plane.actions.retry("a-1", ANN) == "a-1"
    await plane.actions.retry("b-1", ANN)
    assert {name: state.retry for name, state in plane.ledger.state.assignments.items()} == {"a": 1, "b": 2}


async def test_actions_are_audited(going: ControlPlane) -> None:
    await going.actions.act("a-2", "pause", BOB, reason="lunch")
    entry_ = (await going.audit.listing(actor="bob"))[-1]
    assert (entry_["action"], entry_["subject"], entry_["reason"]) == ("pause", "Rollout/a-2", "lunch")
    assert (entry_["before"].partition(":")[0], entry_["after"].partition(":")[0]) == ("running", "paused")


async def test_edit_voids_approvals_and_rejected_change_can_be_retried(programs: Programs) -> None:
    plane = await programs.opened(policies={"config_update": {"approval_required": True, "four_eyes": True}})
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a", rate=1), actor="ann")
    before = await plane.status.of("a-1")
    await change(plane, staged(1), actor="bob")
    after = await plane.status.of("a-2")
    assert before["digest"] != after["digest"], "the strategy is approved with the rest"
    assert (await plane.status.of("a-1"))["state"] == "superseded"
    for author in ("Ann", "bob"):
        with pytest.raises(Conflict, match="somebody else must approve it"):
            await plane.actions.approve("a-2", Actor(author), after["digest"])
    await plane.actions.act("a-2", "reject", EVE)
    assert [(r["name"], r["state"]) for r in await plane.status.listing()] == [("a-2", "rejected")]
    assert await plane.actions.retry("a-2", EVE) == "a-3"
    assert await plane.actions.retry("a-2", EVE) == "a-4"
    assert (await plane.status.of("a-3"))["state"] == "superseded"
    with pytest.raises(Conflict):
        await plane.actions.approve("a-4", BOB, (await plane.status.of("a-4"))["digest"])


async def test_priority_and_slot_changes_need_approval(programs: Programs) -> None:
    plane = await programs.opened(policies={"config_update": {"approval_required": True}})
    await change(plane, TEMPLATE + assignment("a"))
    await plane.actions.approve("a-1", BOB, (await plane.status.of("a-1"))["digest"])
    await change(plane, assignment("a", priority=9, slot="x"))
    state = plane.ledger.state.assignments["a"]
    assert state.stable is not None
    assert (state.stable.priority, state.stable.slot, state.pending is not None) == (0, "", True)
    await plane.actions.approve("a-2", BOB, (await plane.status.of("a-2"))["digest"])
    state = plane.ledger.state.assignments["a"]
    assert state.stable is not None
    assert (state.stable.priority, state.stable.slot) == (9, "x")

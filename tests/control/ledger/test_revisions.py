"""What documents lead to: revisions, rollouts, approvals, retries."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from relay.control.app import ControlPlane
from relay.control.storage.database import FILE
from relay.errors import Conflict, NotFound, Refused, StoreError
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.changing import change
from tests.control.texts import TWO_STAGES, staged

NEEDS = "  approval: {required: true, needed: 1, four_eyes: true}\n"


async def rollout_of(plane: ControlPlane, name: str) -> dict[str, Any]:
    return await plane.rollouts.status(name)


async def test_an_edit_cannot_take_its_own_approval_away(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + assignment("a"))
    await change(plane, assignment("a", rate=2) + NEEDS, actor="eve")
    assert (await rollout_of(plane, "a-2"))["state"] == "pending_approval"
    await change(plane, assignment("a", rate=2), actor="eve")
    stripped = await rollout_of(plane, "a-3")
    assert (stripped["state"], stripped["approvals_needed"]) == ("pending_approval", 1)
    with pytest.raises(Conflict, match="somebody else"):
        await plane.rollouts.approve("a-3", "eve", stripped["digest"])
    await plane.rollouts.approve("a-3", "bob", stripped["digest"])
    await change(plane, assignment("a", rate=3), actor="eve")
    assert (await rollout_of(plane, "a-4"))["state"] == "completed", "its approved documents ask for none any more"


async def test_a_deletion_changes_what_agents_run_and_needs_approval_too(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + assignment("a") + NEEDS, actor="eve")
    await plane.rollouts.approve("a-1", "bob", (await rollout_of(plane, "a-1"))["digest"])
    with pytest.raises(Refused, match="need approval"):
        await plane.documents.delete("ConfigAssignment", "a", actor="eve")
    await change(plane, assignment("a") + NEEDS + "  observe_only: true\n", actor="eve")
    await plane.rollouts.approve("a-2", "bob", (await rollout_of(plane, "a-2"))["digest"])
    assert (await plane.documents.delete("ConfigAssignment", "a", actor="eve")).action == "deleted"


async def test_a_retry_goes_by_the_rules_of_today(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a"))
    await change(plane, staged(2), actor="eve")
    await plane.rollouts.act("a-2", "abort", "eve")
    await change(plane, staged(2) + NEEDS, actor="boss")
    assert (await plane.rollouts.retry("a-2", "eve"))["state"] == "pending_approval"


async def test_observing_on_and_off_waits_for_approval(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a") + "  observe_only: true\n")
    state = plane.revisions.states["a"]
    assert (state.observe_only, state.in_force) == (True, [])
    await change(plane, staged(1) + NEEDS, actor="eve")
    state = plane.revisions.states["a"]
    assert (state.observe_only, state.in_force) == (True, []), "nobody gets it before it is approved"
    await plane.rollouts.approve("a-2", "bob", (await rollout_of(plane, "a-2"))["digest"])
    state = plane.revisions.states["a"]
    assert state.rollout is not None
    assert (state.observe_only, state.stable, state.rollout.state.value) == (False, None, "running")


async def test_retries_count_on_over_assignments(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + assignment("a") + assignment("b", priority=1))
    await plane.rollouts.retry("a-1", "ann")
    await plane.rollouts.retry("b-1", "ann")
    assert {name: state.retry for name, state in plane.revisions.states.items()} == {"a": 1, "b": 2}


@pytest.mark.parametrize("ttl", ["9" * 400 + "d", "5s"])
async def test_durations_have_bounds(programs: Programs, ttl: str) -> None:
    plane = await programs.control_plane()
    endless = TWO_STAGES.replace("spec:\n", f'spec:\n  candidate_ttl: "{ttl}"\n')
    with pytest.raises(Refused, match="candidate_ttl"):
        await apply(plane, TEMPLATE, endless)


async def test_the_longest_name_can_be_rolled_out(programs: Programs) -> None:
    plane = await programs.control_plane()
    name = "n" * 128
    await change(plane, TEMPLATE + TWO_STAGES + staged(1, name=name))
    assert (await rollout_of(plane, f"{name}-1"))["name"] == f"{name}-1"


async def test_a_change_that_changes_nothing_for_anybody_is_over_at_once(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a"))
    await change(plane, staged(1, priority=7))
    assert (await rollout_of(plane, "a-2"))["reason"] == "it changes nothing for any agent that is known"


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("assignments", "name = 'b'"),
        ("documents", "key = 'b' WHERE kind = 'ConfigAssignment'"),
        ("rollouts", "name = 'a-9'"),
    ],
)
async def test_a_row_under_another_name_is_damage(programs: Programs, table: str, change: str) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a"))
    await programs.stop(plane)
    file = sqlite3.connect(programs.folder / "control-plane" / FILE)
    file.execute(f"UPDATE {table} SET {change}")
    file.commit()
    file.close()
    with pytest.raises(StoreError, match="damaged: restore a backup"):
        await programs.control_plane()


async def stages_of(plane: ControlPlane, name: str) -> list[str]:
    return [stage["name"] for stage in (await rollout_of(plane, name))["stages"]]


async def test_a_strategy_that_was_given_up_holds_until_a_change_has_gone_out_by_it(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + staged(1))
    await change(plane, assignment("a", rate=1))
    await change(plane, assignment("a", rate=2))
    assert await stages_of(plane, "a-2") == ["canary", "all"], "also where it was given up by an edit of its own"
    while (await rollout_of(plane, "a-2"))["state"] != "completed":
        await plane.rollouts.act("a-2", "promote", "eve", stage=(await rollout_of(plane, "a-2"))["stage"])
    await change(plane, assignment("a", rate=3))
    assert await stages_of(plane, "a-3") == ["all"], "a change has gone out by it"


async def test_a_change_that_gives_up_its_strategy_keeps_it_whatever_else_is_applied(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + staged(1) + NEEDS, actor="eve")
    await plane.rollouts.approve("a-1", "bob", (await rollout_of(plane, "a-1"))["digest"])
    await change(plane, assignment("a", rate=2), actor="eve")
    assert await stages_of(plane, "a-2") == ["canary", "all"]
    await change(plane, assignment("b", rate=9, priority=1), actor="eve")
    assert plane.revisions.states["a"].pending is not None
    assert plane.revisions.states["a"].pending.name == "a-2", "it was not planned again"
    await change(plane, assignment("a", rate=3), actor="eve")
    edited = await rollout_of(plane, "a-3")
    assert (edited["state"], edited["approvals_needed"]) == ("pending_approval", 1)
    assert await stages_of(plane, "a-3") == ["canary", "all"]
    assert (await plane.rollouts.act("a", "reject", "bob"))["state"] == "rejected"
    assert (await rollout_of(plane, "a"))["name"] == "a-3", "its newest, also where it never went out"
    await change(plane, assignment("a", rate=4), actor="eve")
    assert await stages_of(plane, "a-4") == ["canary", "all"], "none has gone out by it yet"


async def test_an_approval_that_was_only_ever_asked_for_is_needed_all_the_same(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + TWO_STAGES + assignment("a", rate=1))
    await change(plane, staged(2) + NEEDS, actor="eve")
    for name, text in (("a-3", assignment("a", rate=2)), ("a-4", assignment("a", rate=3))):
        await change(plane, text, actor="eve")
        await change(plane, assignment("b", rate=int(name[-1]), priority=1), actor="eve")
        assert (await rollout_of(plane, name))["state"] == "pending_approval"
        assert await stages_of(plane, name) == ["canary", "all"]


async def test_a_damaged_rollout_that_is_over_spoils_no_other(programs: Programs) -> None:
    plane = await programs.control_plane()
    await change(plane, TEMPLATE + assignment("a", rate=1))
    await change(plane, assignment("a", rate=2) + NEEDS, actor="eve")
    await plane.rollouts.act("a-2", "reject", "bob")
    file = sqlite3.connect(programs.folder / "control-plane" / FILE, isolation_level=None)
    for name in ("a-1", "a-2"):
        file.execute("UPDATE rollouts SET body = body || ' ' WHERE name = ?", (name,))
    file.close()
    with pytest.raises(StoreError, match="table rollouts: a-2 is damaged"):
        await plane.rollouts.status("a-2")
    assert [r["name"] for r in await plane.rollouts.listing()] == ["a-1"], "what is in memory is well"
    with pytest.raises(NotFound, match="has no history"):
        await plane.rollouts.history("a")

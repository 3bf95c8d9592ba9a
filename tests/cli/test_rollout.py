from __future__ import annotations

from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment
from tests.control.texts import staged, strategy

__all__ = ["desk"]
MANUAL = strategy("name: canary, percentage: 10, manual: true", "name: all, percentage: 100")


async def test_rollout_commands(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + MANUAL + staged(1)), "--as", "ann")
    listed = await desk.ctl("rollout", "list")
    assert "a-1" in listed.out
    assert "canary (1/2)" in listed.out
    shown = await desk.ctl("rollout", "status", "a-1")
    assert shown.out.startswith("a-1 held: this stage matches no known agent") or "a-1 running" in shown.out
    assert "by ann at" in shown.out
    assert (await desk.ctl("rollout", "status", "a-9")).status == 1
    assert (await desk.ctl("rollout", "status", "a-1", "-o", "xml")).status == 2
    wrong = await desk.ctl("rollout", "promote", "a-1", "--stage", "nonsense")
    assert wrong.status == 2
    assert (await desk.ctl("rollout", "pause", "a-1", "--reason", "lunch", "--as", "bob")).out == "a-1 paused: lunch\n"
    assert (await desk.ctl("--as", "eve", "rollout", "resume", "a-1")).out == "a-1 running\n"
    assert (await desk.ctl("rollout", "promote", "a-1", "--stage", "canary")).status == 0
    late = await desk.ctl("rollout", "promote", "a-1", "--stage", "canary")
    assert (late.status, late.err) == (1, "a-1 is now in stage all; review it again\n")
    assert (await desk.ctl("rollout", "rollback", "a-1")).status == 0
    assert (await desk.ctl("rollout", "approve", "a-1")).status == 1


async def test_watch_ends_with_the_rollout(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + MANUAL + staged(1)))
    await desk.ctl("rollout", "abort", "a-1", "--reason", "no")
    watched = await desk.ctl("rollout", "status", "a-1", "-w")
    assert (watched.status, "a-1 aborted: no" in watched.out) == (1, True)
    assert (await desk.ctl("rollout", "status", "a-1", "-w", "-o", "json")).status == 2
    await desk.ctl("apply", "-f", desk.file("b.yaml", TEMPLATE + assignment("b", priority=1)))
    assert (await desk.ctl("rollout", "status", "b-1", "-w")).status == 0

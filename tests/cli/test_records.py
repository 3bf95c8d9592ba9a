from __future__ import annotations

import json

from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment, eventually
from tests.wire import TestAgent

__all__ = ["desk"]


async def test_history_and_audit(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + assignment("a")), "--as", "ann")
    await desk.ctl("apply", "-f", desk.file("b.yaml", assignment("a", rate=2)), "--as", "bob")
    history = await desk.ctl("history", "assignment", "a")
    assert "a-1" in history.out
    assert "bob" in history.out
    assert '"name": "a-2"' in (await desk.ctl("history", "assignment", "a", "-o", "json")).out
    assert (await desk.ctl("history", "assignment", "b")).status == 1
    audit = await desk.ctl("audit", "--since", "1h", "--actor", "bob", "-o", "json")
    assert '"subject": "ConfigAssignment/a"' in audit.out
    assert "ann" not in audit.out
    assert "ann" in (await desk.ctl("audit", "--since", "2026-01-01")).out
    assert (await desk.ctl("audit", "--since", "yesterday")).status == 2
    assert "document " in (await desk.ctl("audit", "--subject", "ConfigAssignment/a")).out, (
        "hashes are called what they are"
    )
    assert " change " in (await desk.ctl("audit", "--subject", "Rollout/")).out
    assert "intact" in (await desk.ctl("audit", "verify")).out


async def test_diff_of_a_rollout_and_history_diff(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + assignment("a", rate=33)), "--as", "ann")
    await desk.ctl("apply", "--wait", "-f", desk.file("b.yaml", assignment("a", rate=44)), "--as", "bob")
    done = await desk.ctl("diff", "rollout", "a-2")
    assert done.status == 0, done
    assert "  values.rate: 33 -> 44\n" in done.out
    assert "    +rate: 44\n" in done.out
    history = await desk.ctl("history", "assignment", "a", "--diff")
    assert "  values.rate: 33 -> 44\n" in history.out
    assert history.out.startswith("a-1 ")
    versions = await desk.ctl("history", "document", "assignment", "a")
    assert [line.split()[0] for line in versions.out.splitlines()[1:]] == ["1", "2"]
    assert "rate: 33" in (await desk.ctl("get", "assignment", "a@1", "-o", "yaml")).out
    assert "rate: 44" in (await desk.ctl("get", "assignment", "a@2", "-o", "yaml")).out
    assert "rate: 33" in (await desk.ctl("get", "assignment", "a@1")).out
    assert (await desk.ctl("get", "assignment", "a@3")).status == 1
    entries = json.loads((await desk.ctl("audit", "--subject", "assignment/a", "-o", "json")).out)
    assert [e["actor"] for e in entries] == ["ann", "bob"]
    shown = await desk.ctl("audit", "show", str(entries[0]["number"]))
    assert "actor: ann\n" in shown.out
    assert "rate: 33\n" in shown.out
    assert (await desk.ctl("audit", "--until", "2020-01-01", "-o", "json")).out == "[]\n"
    assert (await desk.ctl("audit", "--until", "tomorrow")).status == 2
    revision = json.loads((await desk.ctl("rollout", "status", "a-2", "-o", "json")).out)["candidate"]
    config = await desk.ctl("get", "config", revision)
    assert config.out.startswith(f"# revision {revision}: basic@v1 of a-2\n")
    assert "rate: 44\n" in config.out
    for usage in (("diff",), ("diff", "rollout"), ("diff", "agent", "x")):
        assert (await desk.ctl(*usage)).status == 2


async def test_assignments_list_declared_and_in_force(desk: Desk) -> None:
    await desk.ctl("apply", "--wait", "-f", desk.file("a.yaml", TEMPLATE + assignment("a", rate=33)))
    table = (await desk.ctl("get", "assignments")).out.splitlines()
    assert table[0].split()[-4:] == ["IN", "FORCE", "TAKEN", "BACK"]
    assert "basic@v1 (" in table[1]


async def test_deletion_that_orphans_agents_needs_yes(desk: Desk) -> None:
    name = desk.file("a.yaml", assignment("a"))
    await desk.ctl("apply", "-f", desk.file("t.yaml", TEMPLATE), "-f", name)
    await eventually(lambda: desk.node.policy.accepted)
    agent = await TestAgent.over("websocket", desk.node.ports, "x")
    await agent.hello()
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 1)
    for way in (("assignment", "a"), ("-f", name)):
        done = await desk.ctl("delete", *way)
        assert done.status == 1
        assert (
            "without it 1 agent would match nothing, and would keep its configuration; use --yes to delete it anyway"
            in done.err
        )
    assert (await desk.ctl("delete", "assignment", "a", "--yes")).status == 0
    await agent.close()

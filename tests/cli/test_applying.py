from __future__ import annotations

import json

from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment, eventually
from tests.control.texts import staged, strategy
from tests.wire import TestAgent

__all__ = ["desk"]
MANUAL = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")


async def test_wait_exits_by_the_outcome_of_its_rollouts(desk: Desk) -> None:
    done = await desk.ctl("apply", "--wait", "-f", desk.file("a.yaml", TEMPLATE + assignment("a")))
    assert (done.status, done.err) == (0, "")
    name = desk.file("b.yaml", MANUAL + staged(1, "b", priority=1))
    done = await desk.ctl("apply", "--wait", "--timeout", "1s", "-f", name)
    assert (done.status, done.err) == (5, "timed out: b-1 is still in progress\n")
    await desk.ctl("rollout", "abort", "b-1", "--reason", "no")
    agent = await TestAgent.over("websocket", desk.node.ports, "x")
    await agent.hello()
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 1)
    late = await desk.ctl(
        "apply", "--wait", "--timeout", "1s", "-o", "json", "-f", desk.file("c.yaml", assignment("a", rate=2))
    )
    assert late.status == 5
    (rollout,) = json.loads(late.out)["rollouts"]
    assert (rollout["name"], rollout["state"]) == ("a-2", "running")
    assert "rollout a-2 running" in late.err
    await agent.close()
    done = await desk.ctl("rollout", "status", "a")
    assert done.out.startswith("a-2 ")


async def test_wrong_usage(desk: Desk) -> None:
    name = desk.file("a.yaml", TEMPLATE)
    for options in (("--timeout", "1s"), ("--wait", "--timeout", "soon"), ("--prune",), ("-l", "a=b"), ("-o", "table")):
        done = await desk.ctl("apply", "-f", name, *options)
        assert (done.status, bool(done.err)) == (2, True), options


async def test_output_of_get_can_be_applied(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("all.yaml", TEMPLATE + assignment("a") + assignment("b", priority=1)))
    for plural in ("assignments", "templates"):
        got = await desk.ctl("get", plural, "-o", "yaml")
        again = await desk.ctl("apply", "-f", "-", stdin=got.out)
        assert again.status == 0, again
        assert {line.split()[1] for line in again.out.splitlines()} == {"unchanged"}


async def test_diff_exit_codes(desk: Desk) -> None:
    name = desk.file("a.yaml", TEMPLATE + assignment("a"))
    assert (await desk.ctl("diff", "-f", name)).status == 1
    await desk.ctl("apply", "-f", name)
    assert (await desk.ctl("diff", "-f", name)).status == 0
    assert (await desk.ctl("diff", "-f", desk.file("b.yaml", assignment("a", rate=1000)))).status == 4
    assert (await desk.ctl("diff", "-f", desk.file("c.yaml", "a: [\n"))).status == 4
    assert (await desk.ctl("diff", "rollout", "nosuch")).status == 4
    (desk.folder / "d.yaml").write_bytes(b"a: \xe4\n")
    assert (await desk.ctl("diff", "-f", str(desk.folder / "d.yaml"))).status == 4
    assert (await desk.ctl("apply", "-f", str(desk.folder / "d.yaml"))).status == 2
    assert (await desk.ctl("diff", "--nonsense", "-f", name)).status == 2
    assert (await desk.ctl("diff", "-f", "/nonexistent.yaml")).status == 2


async def test_wait_follows_a_rollout_that_already_runs(desk: Desk) -> None:
    name = desk.file("b.yaml", TEMPLATE + MANUAL + staged(1, "b"))
    agent = await TestAgent.over("websocket", desk.node.ports, "x")
    await agent.hello()
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 1)
    await desk.ctl("apply", "-f", name)
    again = await desk.ctl("apply", "--wait", "--timeout", "1s", "-f", name)
    assert (again.status, again.err) == (5, "timed out: b-1 is still in progress\n")
    await desk.ctl("rollout", "abort", "b", "--reason", "no")  # an assignment's name is its latest rollout
    ended = await desk.ctl("apply", "--wait", "--timeout", "5s", "-f", name)
    assert ended.status == 1, ended
    await agent.close()

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from tests.cli.run import BIN
from tests.cli.test_opampctl import Desk, desk
from tests.conftest import eventually
from tests.wire import TestAgent

__all__ = ["desk"]


async def fleet(desk: Desk) -> list[TestAgent]:
    agents = [await TestAgent.over("websocket", desk.node.ports, f"agent-{i}") for i in range(3)]
    for i, agent in enumerate(agents):
        await agent.hello(**{"host.name": f"host-{i}", "service.version": f"1.{i}"})
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 3)
    return agents


async def test_agents_are_filtered_sorted_and_counted(desk: Desk) -> None:
    agents = await fleet(desk)
    await agents[2].close()
    await eventually(lambda: sum(a.connected for a in desk.plane.fleet.census.agents.values()) == 2)

    async def names(*options: str) -> list[str]:
        done = await desk.ctl("get", "agents", "-o", "name", *options)
        assert done.status == 0, done
        return done.out.splitlines()

    assert await names() == ["agent-0", "agent-1", "agent-2"]
    assert await names("--not-connected") == ["agent-2"]
    assert await names("--connected", "--sort", "-version") == ["agent-1", "agent-0"]
    assert await names("--version", "1.1") == ["agent-1"]
    assert await names("--region", "local", "--node", "local/one", "--limit", "1") == ["agent-0"]
    assert await names("--status", "failed") == await names("--unhealthy") == []
    shown = (await desk.ctl("get", "agents")).out.splitlines()
    assert shown[-1].startswith("3 agents: 1 away, 2 connected; ")
    wide = (await desk.ctl("get", "agents", "-o", "wide")).out
    assert "HOST" in wide
    assert "host-1" in wide
    (one,) = json.loads((await desk.ctl("get", "agents", "--version", "1.0", "-o", "json")).out)
    assert one["host_name"] == "host-0"


async def test_truncated_list_says_so(desk: Desk) -> None:
    await fleet(desk)
    cut = await desk.ctl("get", "agents", "-o", "name", "--limit", "2")
    assert (cut.out.splitlines(), cut.status) == (["agent-0", "agent-1"], 0)
    assert cut.err == "3 agents match: show more with `--limit`, or all with `--all`\n"
    assert (await desk.ctl("get", "agents", "--limit", "2")).out.splitlines()[-1].startswith("2 of 3 agents: ")
    whole = await desk.ctl("get", "agents", "-o", "name", "--all")
    assert (len(whole.out.splitlines()), whole.err) == (3, "")
    lines = (await desk.ctl("get", "agents", "-o", "json", "--all")).out
    assert [agent["agent_id"] for agent in json.loads(lines)] == ["agent-0", "agent-1", "agent-2"]
    assert len(lines.splitlines()) == 3, "an agent a line, as they come"
    both = await desk.ctl("get", "agents", "--all", "--limit", "2")
    assert (both.status, "exclude each other" in both.err) == (2, True)
    assert (await desk.ctl("get", "nodes", "--all")).status == 2


async def test_agent_is_found_by_host_or_prefix(desk: Desk) -> None:
    await fleet(desk)
    for name in ("host-1", "agent-1"):
        assert "agent_id: agent-1\n" in (await desk.ctl("describe", "agent", name)).out
    shared = await desk.ctl("describe", "agent", "agen")
    assert (shared.status, shared.err) == (1, "agen matches 3 agents: agent-0, agent-1, agent-2\n")
    assert (await desk.ctl("explain", "agent", "host-2")).out.startswith("agent agent-2 in region local")


async def test_agent_options_are_refused_for_other_resources(desk: Desk) -> None:
    for options in (("--region", "eu"), ("--unhealthy",), ("-w",), ("-o", "wide")):
        done = await desk.ctl("get", "nodes", *options)
        assert (done.status, bool(done.err)) == (2, True)
    done = await desk.ctl("get", "agents", "--sort", "colour")
    assert done.status == 1
    assert "colour is not one of agent_id" in done.err


async def test_watch_prints_agents_after_each_change(desk: Desk) -> None:
    watch = await asyncio.create_subprocess_exec(
        str(BIN / "opampctl"), "get", "agents", "-w", "-o", "name", stdout=asyncio.subprocess.PIPE,
        stderr=sys.stderr, env={**os.environ, "OPAMPCTL_SERVER": f"http://127.0.0.1:{desk.plane.ports['api']}"},
    )  # fmt: skip
    try:
        await fleet(desk)
        assert watch.stdout is not None
        async with asyncio.timeout(20):
            while (await watch.stdout.readline()).decode() != "agent-2\n":
                pass
    finally:
        watch.send_signal(signal.SIGINT)
        assert await watch.wait() == 0

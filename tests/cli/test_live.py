from __future__ import annotations

import asyncio

import pytest

from relay.cli.live import LiveView
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import TestAgent


async def test_live_view_on_a_terminal_and_as_lines(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a"))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over("websocket", node.ports, "x")
    await agent.hello()
    await eventually(lambda: any(a.config.slots for a in plane.fleet.census.agents.values()))
    view = LiveView(plane)
    view.report("  x connected")
    stop = asyncio.Event()
    running = asyncio.create_task(view.run(stop))
    await eventually(lambda: any("rollout a-1" in line for line in view._events))
    stop.set()
    await running
    lines = view.render(await plane.status.listing())
    assert any(line.startswith("region local      nodes 1 of 1  agents 1 of 1") for line in lines)
    assert "assignment a                1 agents" in lines
    assert any(line.startswith("rollout a-1 ") for line in lines)
    assert "x connected" in lines
    out = capsys.readouterr().out
    assert "  x connected\n  rollout a-1" in out
    await agent.close()

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import TestAgent


def get(port: int, path: str) -> Any:
    return json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read())


async def test_node_and_control_plane_explain_the_same(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a", priority=3), assignment("b", rate=4))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over("websocket", node.ports, "x")
    await agent.applied((await agent.hello(None, tier="prod")).remote_config.config_hash)
    await eventually(lambda: any(a.config.status == "APPLIED" for a in plane.fleet.census.agents.values()))
    above = await asyncio.to_thread(get, plane.ports["api"], "/api/v1/agents/x/explain")
    here = await asyncio.to_thread(get, node.ports["http"], "/api/v1/agents/x/explain")
    assert above == here
    assert above["slots"][0]["assignment"] == "a"
    assert above["attempts"][0]["status"] == "APPLIED"
    await programs.stop(node)
    await eventually(lambda: not plane.fleet.census.nodes["local/one"].connected)
    later = await asyncio.to_thread(get, plane.ports["api"], "/api/v1/agents/x/explain")
    assert later["notes"] == ["node local/one is offline: it uses the last policy that it received"]
    await agent.close()

"""People at a node that asks for credentials, over real sockets."""

from __future__ import annotations

from typing import Any

import aiohttp

from relay.control.access.actor import SYSTEM
from relay.control.access.roles import Grant, Role
from relay.control.app import ControlPlane
from relay.control.credentials.keys import KeyRequest
from relay.control.credentials.tokens import TokenRequest
from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import Programs, eventually
from tests.node.test_authentication import joined


async def stand(programs: Programs) -> tuple[ControlPlane, Node]:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"], auth={"type": "api_key"})
    await eventually(lambda: node.policy.accepted)
    return plane, node


async def reader(plane: ControlPlane, node: Node, *, expires_s: float = 60, **scope: str) -> str:
    request = TokenRequest("ops", Grant(Role.VIEWER, scope), expires_s, on_nodes=True)
    before = len(node.policy.access.readers)
    _, secret = await plane.credentials.tokens.create(request, actor=SYSTEM)
    await eventually(lambda: len(node.policy.access.readers) == before + 1)
    return secret


async def key(plane: ControlPlane, node: Node, name: str, **labels: str) -> str:
    made, secret = await plane.credentials.keys.create(KeyRequest(name, True, labels), actor=SYSTEM)
    await eventually(lambda: node.policy.access.key(made.digest[:5]))
    return secret


async def get(node: Node, path: str, *credentials: str) -> tuple[int, Any]:
    headers = [("Authorization", f"Bearer {credential}") for credential in credentials]
    url = f"http://127.0.0.1:{node.ports['http']}{path}"
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, await answer.json() if is_json else await answer.text()


async def test_people_read_with_a_token_made_for_nodes(programs: Programs) -> None:
    plane, node = await stand(programs)
    token = await reader(plane, node)
    await programs.stop(plane)  # cut off
    for path in ("/api/v1/status", "/api/v1/agents", "/metrics"):
        assert (await get(node, path, token))[0] == 200, path
    assert (await get(node, "/api/v1/unknown", token))[0] == 404
    assert (await get(node, "/api/v1/agents/x", token))[0] == 404
    assert "refused_callers" in (await get(node, "/api/v1/status", token))[1]


async def test_attack_reading_with_anything_else(programs: Programs) -> None:
    plane, node = await stand(programs)
    token, agents_key = await reader(plane, node), await key(plane, node, "agent-001")
    _, elsewhere = await plane.credentials.tokens.create(TokenRequest("x", Grant(Role.ADMIN), 60), actor=SYSTEM)
    flipped = token[:-1] + ("a" if token[-1] != "a" else "b")
    for credentials in ((), ("x",), (elsewhere,), (flipped,)):
        assert (await get(node, "/api/v1/agents", *credentials))[0] == 401, credentials
        assert (await get(node, "/metrics", *credentials))[0] == 401, credentials
    assert (await get(node, "/api/v1/agents", token, token))[0] == 400
    assert (await get(node, "/api/v1/agents", agents_key))[0] == 403
    assert (await get(node, "/api/v1/unknown"))[0] == 401


async def test_deleted_and_ended_tokens_read_no_more(programs: Programs) -> None:
    plane, node = await stand(programs)
    token, short = await reader(plane, node), await reader(plane, node, expires_s=1)
    (deleted,) = [t for t in plane.ledger.state.tokens.values() if t.expires_ms - t.created_ms > 1000]
    await plane.credentials.tokens.delete(deleted.id, actor=SYSTEM)
    await eventually(lambda: len(node.policy.access.readers) == 1)
    assert (await get(node, "/api/v1/status", token))[0] == 401

    async def has_ended() -> bool:
        return (await get(node, "/api/v1/status", short))[0] == 401

    await eventually(has_ended)


async def test_only_agents_of_the_scope_are_shown(programs: Programs) -> None:
    plane, node = await stand(programs)
    token = await reader(plane, node, team="a")
    agents = [
        await joined(node, "websocket", "", await key(plane, node, f"agent-{team}", team=team)) for team in ("a", "b")
    ]
    assert [agent["agent_id"] for agent in (await get(node, "/api/v1/agents", token))[1]] == ["agent-a"]
    assert (await get(node, "/api/v1/agents/agent-a", token))[0] == 200
    for path in ("agent-b", "agent-b/config", "agent-b/explain"):
        assert (await get(node, f"/api/v1/agents/{path}", token))[0] == 404
    for agent, _ in agents:
        await agent.close()


async def test_effective_configs_are_masked(programs: Programs) -> None:
    plane, node = await stand(programs)
    token = await reader(plane, node)
    agent, _ = await joined(node, "websocket", "", await key(plane, node, "agent-001"))
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"password: hunter2\n"
    await agent.report(effective_config=effective)
    status, shown = await get(node, "/api/v1/agents/agent-001/config", token)
    assert (status, shown[""]["body"]) == (200, "password: '[secret 1]'\n")
    await agent.close()

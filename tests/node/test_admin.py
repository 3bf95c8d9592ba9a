import aiohttp

from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import TestAgent


async def get(port: int, path: str) -> tuple[int, object]:
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}{path}") as answer:
        if answer.content_type == "application/json":
            return answer.status, await answer.json()
        return answer.status, await answer.text()


async def test_node_without_policy_is_healthy_but_not_ready(programs: Programs) -> None:
    node = await programs.node()
    for port in ("http", "websocket", "metrics"):
        assert await get(node.ports[port], "/health") == (200, {"status": "ok", "degraded": []})
        status, ready = await get(node.ports[port], "/ready")
        assert (status, ready) == (503, {"ready": False, "reason": "no policy has been received"})
    agent = await TestAgent.over("websocket", node.ports)
    assert await agent.hello() == pb.ServerToAgent(instance_uid=agent.uid, capabilities=0x1F)
    await agent.close()


async def test_status_agents_and_metrics(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    node = await programs.node(control_plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agents = [await TestAgent.over("websocket", node.ports, f"agent-{i}") for i in range(3)]
    for agent in agents:
        await agent.hello()
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"rate: 1"
    await agents[0].report(effective_config=effective)
    port = node.ports["http"]
    assert await get(port, "/ready") == (200, {"ready": True, "reason": ""})
    _, listed = await get(port, "/api/v1/agents")
    assert isinstance(listed, list)
    assert {a["agent_id"] for a in listed} == {"agent-0", "agent-1", "agent-2"}
    _, one = await get(port, "/api/v1/agents/agent-0")
    assert isinstance(one, dict)
    assert await get(port, f"/api/v1/agents/{one['instance_uid']}") == (200, one)
    assert (await get(port, f"/api/v1/agents/{one['instance_uid'][:8]}"))[0] == 409, "the beginning of several"
    for path in ("agents?status=FAILED", "agents/agent-0?x=1", "status?x=1"):
        code, said = await get(port, f"/api/v1/{path}")
        assert (code, "unknown parameter" in str(said)) == (422, True)
    assert one["config"]["assignments"] == ["all"]
    assert (await get(port, "/api/v1/agents/agent-0/config"))[1] == {"": {"content_type": "", "body": "rate: 1"}}
    assert (await get(port, "/api/v1/agents/agent-1/config"))[0] == 404
    assert (await get(port, "/api/v1/agents/nobody"))[0] == 404
    _, status = await get(port, "/api/v1/status")
    assert isinstance(status, dict)
    assert (status["connected"], status["link"], status["manifest"]) == (3, "up", [1, 1])
    await eventually(lambda: node.registry.rollup.connected == 3)
    text = (await get(node.ports["metrics"], "/metrics"))[1]
    assert isinstance(text, str)
    assert 'opamp_server_connected_agents{region="local"} 3.0' in text
    assert "opamp_relay_link_up" in text
    for agent in agents:
        await agent.close()

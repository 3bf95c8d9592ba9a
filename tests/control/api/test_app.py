from tests.conftest import Programs, eventually
from tests.control.api.client import started
from tests.wire import TestAgent


async def test_fleet_endpoints(programs: Programs) -> None:
    plane, client = await started(programs)
    node = await programs.node(plane.ports["link"])
    agents = [await TestAgent.over("websocket", node.ports, f"a{i}") for i in range(3)]
    for i, agent in enumerate(agents):
        await agent.hello(tier="x" if i else "y")
    await eventually(lambda: len(plane.fleet.census.agents) == 3)
    status, listed = await client.call("GET", "/api/v1/agents?label=tier=x&label=region=local&fields=agent_id,node")
    assert status == 200
    assert isinstance(listed, list)
    assert sorted(a["agent_id"] for a in listed) == ["a1", "a2"]
    assert (await client.call("GET", "/api/v1/agents?label=nonsense"))[0] == 422
    assert (await client.call("GET", "/api/v1/agents/a0"))[0] == 200
    assert (await client.call("GET", "/api/v1/agents/nobody"))[0] == 404
    assert (await client.call("GET", "/api/v1/agents/a0/config"))[0] == 404
    await agents[0].close()
    await eventually(lambda: sum(a.connected for a in plane.fleet.census.agents.values()) == 2)
    _, connected = await client.call("GET", "/api/v1/agents?connected=true")
    assert isinstance(connected, list)
    assert len(connected) == 2
    _, nodes = await client.call("GET", "/api/v1/nodes")
    _, regions = await client.call("GET", "/api/v1/regions")
    assert isinstance(nodes, list)
    assert isinstance(regions, list)
    assert (nodes[0]["name"], regions[0]["name"]) == ("one", "local")
    for agent in agents[1:]:
        await agent.close()


async def test_api_serves_its_description(programs: Programs) -> None:
    _, client = await started(programs)
    _, schema = await client.call("GET", "/api/v1/openapi.json")
    assert isinstance(schema, dict)
    assert "/api/v1/apply" in schema["paths"]
    assert await client.call("GET", "/health") == (200, {"status": "ok"})
    assert await client.call("GET", "/ready") == (200, {"ready": True})

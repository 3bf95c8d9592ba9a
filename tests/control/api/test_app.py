import asyncio
import io

from tests.conftest import TEMPLATE, Programs, assignment, eventually
from tests.control.api.client import body, started
from tests.wire import TestAgent


async def test_documents_in_and_out(programs: Programs) -> None:
    _, client = await started(programs)
    status, answer = await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a")))
    assert status == 200
    assert isinstance(answer, dict)
    assert [d["action"] for d in answer["documents"]] == ["created", "created"]
    status, listed = await client.call("GET", "/api/v1/documents/assignments")
    assert isinstance(listed, list)
    assert [d["metadata"]["name"] for d in listed] == ["a"]
    assert (await client.call("GET", "/api/v1/documents/templates/basic@v1"))[0] == 200
    assert (await client.call("GET", "/api/v1/documents/templates/none@v1"))[0] == 404
    assert (await client.call("GET", "/api/v1/documents/nonsense"))[0] == 404
    assert (await client.call("DELETE", "/api/v1/documents/templates/basic@v1"))[0] == 409
    assert (await client.call("DELETE", "/api/v1/documents/assignments/a"))[0] == 200


async def test_refusals_are_problem_json_with_every_problem(programs: Programs) -> None:
    _, client = await started(programs)
    status, answer = await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a", rate=1000)))
    assert status == 422
    assert isinstance(answer, dict)
    assert answer["problems"][0]["text"] == "f.yaml:18: spec.values.rate: 1000 is above the most 100"
    status, answer = await client.call("POST", "/api/v1/apply", json={"sources": "x"})
    assert status == 422
    assert isinstance(answer, dict)
    assert answer["problems"][0]["path"] == "body.sources"
    metrics = (await client.call("GET", "/metrics"))[1]
    assert isinstance(metrics, str)
    assert 'opamp_control_plane_applies_total{outcome="refused"} 1.0' in metrics


async def test_a_browser_s_page_of_another_site_cannot_write(programs: Programs) -> None:
    _, client = await started(programs)
    form = {"Content-Type": "text/plain"}
    assert (await client.call("POST", "/api/v1/apply", data="{}", headers=form))[0] == 415
    assert (await client.call("GET", "/api/v1/agents", headers={"Host": "evil.example:4340"}))[0] == 403
    assert (
        await client.call(
            "POST", "/api/v1/apply", data=io.BytesIO(b"x" * (17 << 20)), headers={"Content-Type": "application/json"}
        )
    )[0] == 413


async def test_a_body_without_a_length_is_refused(programs: Programs) -> None:
    _, client = await started(programs)
    port = int(client.url.rpartition(":")[2])
    for extra in ("Transfer-Encoding: chunked\r\n", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /api/v1/apply HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{extra}\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 411")
        writer.close()
        await writer.wait_closed()


async def test_the_fleet(programs: Programs) -> None:
    plane, client = await started(programs)
    node = await programs.node(plane.ports["link"])
    agents = [await TestAgent.over("websocket", node.ports, f"a{i}") for i in range(3)]
    for i, agent in enumerate(agents):
        await agent.hello(tier="x" if i else "y")
    await eventually(lambda: len(plane.fleet.agents) == 3)
    status, listed = await client.call("GET", "/api/v1/agents?label=tier=x&label=region=local&fields=agent_id,node")
    assert status == 200
    assert isinstance(listed, list)
    assert sorted(a["agent_id"] for a in listed) == ["a1", "a2"]
    assert (await client.call("GET", "/api/v1/agents?label=nonsense"))[0] == 422
    assert (await client.call("GET", "/api/v1/agents/a0"))[0] == 200
    assert (await client.call("GET", "/api/v1/agents/nobody"))[0] == 404
    assert (await client.call("GET", "/api/v1/agents/a0/config"))[0] == 404
    await agents[0].close()
    await eventually(lambda: sum(a.connected for a in plane.fleet.agents.values()) == 2)
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


async def test_the_api_describes_itself(programs: Programs) -> None:
    _, client = await started(programs)
    _, schema = await client.call("GET", "/api/v1/openapi.json")
    assert isinstance(schema, dict)
    assert "/api/v1/apply" in schema["paths"]
    assert await client.call("GET", "/health") == (200, {"status": "ok"})
    assert await client.call("GET", "/ready") == (200, {"ready": True})

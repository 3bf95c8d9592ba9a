from __future__ import annotations

import aiohttp

from relay.control.app import ControlPlane
from relay.pb.relay.v1 import link_pb2
from tests.conftest import Programs, eventually
from tests.control.api.client import Client, started
from tests.control.reports import ONE, entry, up
from tests.wire import TestAgent


async def fleet(programs: Programs, count: int = 5) -> tuple[ControlPlane, Client]:
    plane, client = await started(programs)
    node = await programs.node(plane.ports["link"])
    for i in range(count):
        agent = await TestAgent.over("websocket", node.ports, f"agent-{i}")
        await agent.hello(**{"service.version": f"1.{i}"})
    await eventually(lambda: len(plane.fleet.census.agents) == count)
    return plane, client


async def test_unknown_filter_is_refused_by_name(programs: Programs) -> None:
    _, client = await started(programs)
    for path in ("agents?helthy=false", "nodes?region=eu", "rollouts?state=held", "audit?who=ann", "drift?x=1"):
        status, answer = await client.call("GET", f"/api/v1/{path}")
        assert isinstance(answer, dict)
        name = path.partition("?")[2].partition("=")[0]
        assert (status, answer["problems"][0]["path"]) == (422, name)
    for path in ("agents?healthy=perhaps", "agents?status=WELL", "agents?limit=0", "agents?sort=colour"):
        assert (await client.call("GET", f"/api/v1/{path}"))[0] == 422


async def test_agents_are_filtered(programs: Programs) -> None:
    _, client = await fleet(programs)
    for asked, expected in {
        "version=1.3": ["agent-3"],
        "sort=-agent_id&limit=2": ["agent-4", "agent-3"],
        "limit=2&after=agent-1": ["agent-2", "agent-3"],
        "connected=false": [],
        "region=eu": [],
        "node=local/one&version=1.0": ["agent-0"],
        "status=UNSET&connected=true&limit=1": ["agent-0"],
    }.items():
        _, answer = await client.call("GET", f"/api/v1/agents?{asked}")
        assert isinstance(answer, list)
        assert [agent["agent_id"] for agent in answer] == expected, asked


async def test_method_not_allowed_names_allowed_methods(programs: Programs) -> None:
    _, client = await started(programs)
    url = f"{client.url}/api/v1/documents/templates/a@v1"
    async with aiohttp.ClientSession() as session, session.put(url, json={}) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET")
        assert answer.content_type == "application/problem+json"


async def test_agents_metric_counts_by_region_status_and_health(programs: Programs) -> None:
    _, client = await fleet(programs, 2)
    text = (await client.call("GET", "/metrics"))[1]
    assert isinstance(text, str)
    found = [line for line in text.splitlines() if line.startswith("opamp_control_plane_agents{")]
    assert found == ['opamp_control_plane_agents{healthy="true",region="local",status="UNSET"} 2.0']


async def test_paging_works_for_any_agent_name(programs: Programs) -> None:
    plane, client = await started(programs)
    await up(plane.fleet, ONE)
    names = ["a", "zz-日本", "zz-😀", "zz\n", " zz ", "a/b"]
    agents = [entry(name, uid=bytes([number]) * 16) for number, name in enumerate(names)]
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    found, after = [], ""
    async with aiohttp.ClientSession() as session:
        while True:
            url = f"{client.url}/api/v1/agents?limit=1&after={after}"
            async with session.get(url) as answer:
                assert (answer.status, answer.headers["X-Total-Count"]) == (200, "6")
                found += [agent["agent_id"] for agent in await answer.json()]
                if (after := answer.headers.get("X-Next-After", "")) == "":
                    break
    assert sorted(found) == sorted(names)

from __future__ import annotations

import pytest

from relay.control.app import ControlPlane
from relay.control.fleet import query
from relay.errors import Conflict, NotFound, Refused
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import TestAgent


@pytest.fixture
async def plane(programs: Programs) -> ControlPlane:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a"))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    other = await programs.node(plane.ports["link"], name="two", region="eu")
    for i, (at, version) in enumerate([(node, "1.0"), (node, "1.1"), (other, "1.1"), (other, "1.2")]):
        agent = await TestAgent.over("websocket", at.ports, f"agent-{i}")
        await agent.hello(**{"host.name": f"host-{i % 3}", "service.version": version, "tier": "x" if i else "y"})
    await eventually(lambda: len(plane.fleet.census.agents) == 4)
    return plane


async def names(plane: ControlPlane, **wanted: object) -> list[str]:
    page = await query.choose(plane.fleet, query.Query(**wanted))  # type: ignore[arg-type]
    assert page.total == len(page.agents)
    return [agent.agent_id for agent in page.agents]


async def test_every_filter_must_match(plane: ControlPlane) -> None:
    assert await names(plane) == ["agent-0", "agent-1", "agent-2", "agent-3"]
    assert await names(plane, region="eu") == ["agent-2", "agent-3"]
    assert await names(plane, node="one") == await names(plane, node="local/one") == ["agent-0", "agent-1"]
    assert await names(plane, node="eu/one") == []
    assert await names(plane, version="1.1") == ["agent-1", "agent-2"]
    assert await names(plane, version="1.1", region="eu") == ["agent-2"]
    assert await names(plane, labels=frozenset({("tier", "x")}), region="local") == ["agent-1"]
    assert await names(plane, connected=False) == []
    assert len(await names(plane, connected=True)) == 4
    assert await names(plane, status="FAILED") == []
    assert await names(plane, healthy=False) == []


async def test_a_list_is_sorted_and_comes_in_pages(plane: ControlPlane) -> None:
    assert await names(plane, sort="-version") == ["agent-3", "agent-1", "agent-2", "agent-0"]
    first = await query.choose(plane.fleet, query.Query(limit=3))
    assert ([a.agent_id for a in first.agents], first.total, first.more) == (["agent-0", "agent-1", "agent-2"], 4, True)
    rest = await query.choose(plane.fleet, query.Query(limit=3, after="agent-2"))
    assert ([a.agent_id for a in rest.agents], rest.total, rest.more) == (["agent-3"], 4, False)
    with pytest.raises(Refused, match="colour is not one of"):
        await names(plane, sort="colour")
    with pytest.raises(NotFound):
        await names(plane, after="nobody")


async def test_an_agent_is_found_by_what_people_call_it(plane: ControlPlane) -> None:
    assert (await query.find(plane.fleet, "agent-1")).agent_id == "agent-1"
    assert (await query.find(plane.fleet, "host-1")).agent_id == "agent-1"
    uid = (await query.find(plane.fleet, "agent-2")).uid.hex()
    hyphened = f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:]}"
    assert (
        (await query.find(plane.fleet, uid)).agent_id == (await query.find(plane.fleet, hyphened)).agent_id == "agent-2"
    )
    for beginning in (uid[:20], hyphened[:24]):
        with pytest.raises(Conflict, match="matches 4 agents"):
            await query.find(plane.fleet, beginning)
    with pytest.raises(Conflict, match="host-0 matches 2 agents: agent-0, agent-3"):
        await query.find(plane.fleet, "host-0")
    with pytest.raises(Conflict, match="agen matches 4 agents"):
        await query.find(plane.fleet, "agen")
    with pytest.raises(NotFound, match="shortened to 4 characters"):
        await query.find(plane.fleet, "age")
    with pytest.raises(NotFound):
        await query.find(plane.fleet, "nobody")


async def test_labels_are_k_v(plane: ControlPlane) -> None:
    assert query.wanted_labels(["a=b", "c=d=e", "a=c"]) == {("a", "b"), ("a", "c"), ("c", "d=e")}
    with pytest.raises(Refused):
        query.wanted_labels(["a"])

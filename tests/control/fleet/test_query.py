from __future__ import annotations

import pytest

from relay.control.app import ControlPlane
from relay.control.fleet import query
from relay.control.fleet.fleet import Fleet
from relay.control.storage.database import Database
from relay.errors import Conflict, NotFound, Refused
from relay.pb.relay.v1 import link_pb2
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.reports import ONE, TWO, entry, up
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


async def test_list_is_sorted_and_paged(plane: ControlPlane) -> None:
    assert await names(plane, sort="-version") == ["agent-3", "agent-1", "agent-2", "agent-0"]
    first = await query.choose(plane.fleet, query.Query(limit=3))
    assert ([a.agent_id for a in first.agents], first.total, first.more) == (["agent-0", "agent-1", "agent-2"], 4, True)
    rest = await query.choose(plane.fleet, query.Query(limit=3, after="agent-2"))
    assert ([a.agent_id for a in rest.agents], rest.total, rest.more) == (["agent-3"], 4, False)
    with pytest.raises(Refused, match="colour is not one of"):
        await names(plane, sort="colour")
    with pytest.raises(NotFound):
        await names(plane, after="nobody")


async def test_agent_is_found_by_any_name(plane: ControlPlane) -> None:
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
    with pytest.raises(NotFound, match="needs at least 4 characters"):
        await query.find(plane.fleet, "age")
    with pytest.raises(NotFound):
        await query.find(plane.fleet, "nobody")


async def test_labels_parse_as_key_value(plane: ControlPlane) -> None:
    assert query.parse_labels(["a=b", "c=d=e", "a=c"]) == {("a", "b"), ("a", "c"), ("c", "d=e")}
    with pytest.raises(Refused):
        query.parse_labels(["a"])


async def walked(fleet: Fleet, limit: int, **more: object) -> list[str]:
    """All pages of a list, concatenated."""
    found: list[str] = []
    after = ""
    while True:
        page = await query.choose(fleet, query.Query(limit=limit, after=after, **more))  # type: ignore[arg-type]
        assert len(page.agents) <= limit
        found += [agent.uid.hex() for agent in page.agents]
        if not page.more:
            assert len(found) == page.total
            return found
        after = page.agents[-1].uid.hex()


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
async def test_pages_contain_each_agent_once_despite_ties(
    fleet: Fleet, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_ROWS", 2)
    await up(fleet, ONE, TWO)
    agents = [entry("same", uid=bytes([number]) * 16, started=number, tier="x") for number in range(1, 12)]
    agents += [entry(f"n{number}", connected=number % 2 == 0, tier="y", x=str(number)) for number in range(9)]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents[::-1]))
    every = sorted(agent.instance_uid.hex() for agent in agents)
    for sort in (name for key in query.SORTS for name in (key, f"-{key}")):
        assert sorted(await walked(fleet, limit, sort=sort)) == every
    labelled = await walked(fleet, limit, labels=frozenset({("tier", "y")}))
    assert len(labelled) == 9
    assert len(await walked(fleet, limit, connected=False)) == 4
    assert len(await walked(fleet, limit, connected=True)) == 16
    assert len(await walked(fleet, limit, labels=frozenset({("x", "3")}))) == 1


async def test_rows_unknown_to_the_census_do_not_end_a_list(fleet: Fleet, database: Database) -> None:
    await up(fleet, ONE)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry(f"a{number}") for number in range(10)]))
    for number in (1, 2, 3):
        fleet.census.drop(entry(f"a{number}").instance_uid)
    assert len(await walked(fleet, 3)) == 7


async def test_very_long_names(fleet: Fleet) -> None:
    await up(fleet, ONE)
    long = "h" * 400
    agents = [entry("a", host__name=long, service__version=long), entry("b", host__name=long[:-1] + "x")]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    assert (await query.find(fleet, long)).agent_id == "a"
    page = await query.choose(fleet, query.Query(version=long))
    assert ([agent.agent_id for agent in page.agents], page.total) == (["a"], 1)
    with pytest.raises(NotFound):
        await query.find(fleet, "x" * 60_000)

"""Agents in the database: filter columns, pages of rows, damaged rows and those of an earlier version."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from relay.control.fleet import query, records
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.records import as_text
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import NotFound
from relay.pb.relay.v1 import link_pb2
from tests.conftest import Programs
from tests.control.reports import ONE, entry, shown, up


def test_plain_values_of_attributes() -> None:
    assert [as_text(value) for value in ("x", None, True, 1, ["a"])] == ["x", "", "true", "1", '["a"]']


async def test_all_agents_are_read_in_batches(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_BATCH_ROWS", 3)
    await up(fleet, ONE)
    agents = [entry(f"a{number}") for number in range(8)]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    pages = [[row.agent_id for row in rows] async for rows in fleet.records.agents()]
    assert ([len(page) for page in pages], sorted(name for page in pages for name in page)) == (
        [3, 3, 2],
        [f"a{number}" for number in range(8)],
    )
    states = await fleet.records.states([agent.uid for agent in fleet.census.visible()])
    assert states == {agent.instance_uid: agent.state for agent in agents}


async def test_damaged_row_is_skipped_and_named(fleet: Fleet, database: Database) -> None:
    await up(fleet, ONE)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b")]))
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE agents SET state = x'00' WHERE agent_id = 'a'"))
    assert len(await fleet.records.states([agent.uid for agent in fleet.census.visible()])) == 1
    with pytest.raises(NotFound, match="a no longer exists"):
        await shown(fleet, "a")
    assert (await shown(fleet, "b"))["agent_id"] == "b"


async def test_filter_columns_of_an_earlier_version_are_filled_in(
    programs: Programs,
) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    agents = [entry("a", service__version="1.2", host__name="h"), entry("b", connected=False)]
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    bare = {"connected": False, "healthy": None, "status": "", "version": "", "host": "", "changed_ms": 0}
    async with plane.database.write() as connection:
        await connection.execute(sa.update(schema.agents).values(**bare, session_started_ms=0))
    await programs.stop(plane)
    again = await programs.opened()
    async with again.database.read() as connection:
        rows = (await connection.execute(sa.select(schema.agents).order_by(schema.agents.c.agent_id))).all()
    assert [(r.connected, r.healthy, r.status, r.version, r.host, r.session_started_ms) for r in rows] == [
        (True, True, "UNSET", "1.2", "h", 1),
        (False, True, "UNSET", "", "", 1),
    ]
    page = await query.choose(again.fleet, query.Query(version="1.2"))
    assert [agent.agent_id for agent in page.agents] == ["a"]


async def test_row_under_another_uid_is_deleted(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b")]))
    async with plane.database.write() as connection:
        await connection.execute(sa.text("UPDATE agents SET instance_uid = x'00' WHERE agent_id = 'a'"))
    await programs.stop(plane)
    again = await programs.opened()
    assert [agent.agent_id for agent in again.fleet.census.visible()] == ["b"]
    assert [row.agent_id async for rows in again.fleet.records.agents() for row in rows] == ["b"]

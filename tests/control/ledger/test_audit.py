from pathlib import Path

import pytest
import sqlalchemy as sa

from relay.control.access.actor import Actor
from relay.control.ledger import audit
from relay.control.ledger.audit import Audit
from relay.control.ledger.change import Entry
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import NotFound
from tests.control.actors import ANN


async def written(folder: Path) -> Database:
    database = Database(folder / "d")
    await database.open()
    for i, actor in enumerate(("ann", "bob", "ann")):
        async with database.write() as connection:
            await audit.add(connection, Actor(actor), [Entry("apply", f"ConfigAssignment/{i}", after="x")], 1000 * i)
    async with database.write() as connection:
        await audit.add(connection, ANN, [], 9000)
    return database


async def test_entries_are_listed(tmp_path: Path) -> None:
    database = await written(tmp_path)
    entries = await Audit(database).listing()
    assert [(e["number"], e["actor"], e["at"]) for e in entries] == [
        (1, "ann", "1970-01-01T00:00:00.000Z"), (2, "bob", "1970-01-01T00:00:01.000Z"),
        (3, "ann", "1970-01-01T00:00:02.000Z"),
    ]  # fmt: skip
    assert not entries[0]["verified"]
    assert [e["number"] for e in await Audit(database).listing(actor="ann")] == [1, 3]
    assert [e["number"] for e in await Audit(database).listing(since_ms=1000)] == [2, 3]
    assert [e["number"] for e in await Audit(database).listing(limit=1)] == [3]
    found = await Audit(database).verify()
    assert (found["ok"], found["entries"], found["hash"]) == (True, 3, entries[-1]["hash"])
    await database.close()


@pytest.mark.parametrize(
    ("forgery", "at"),
    [
        (sa.update(schema.audit).where(schema.audit.c.number == 2).values(actor="eve"), 2),
        (sa.delete(schema.audit).where(schema.audit.c.number == 2), 3),
        (sa.delete(schema.audit).where(schema.audit.c.number == 1), 2),
    ],
)
async def test_tampering_is_detected(tmp_path: Path, forgery: sa.Executable, at: int) -> None:
    database = await written(tmp_path)
    async with database.write() as connection:
        await connection.execute(forgery)
    found = await Audit(database).verify()
    assert (found["ok"], found["broken_at"]) == (False, at)
    await database.close()


async def test_entries_are_filtered_by_time_subject_and_number(tmp_path: Path) -> None:
    database = await written(tmp_path)
    audit_ = Audit(database)
    assert [e["number"] for e in await audit_.listing(until_ms=1000)] == [1]
    assert [e["number"] for e in await audit_.listing(subject="ConfigAssignment/1")] == [2]
    assert [e["number"] for e in await audit_.listing(after=1)] == [2, 3]
    assert (await audit_.get(2))["actor"] == "bob"
    with pytest.raises(NotFound, match="the audit has no entry 9"):
        await audit_.get(9)
    await database.close()

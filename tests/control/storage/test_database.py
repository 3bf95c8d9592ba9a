import asyncio
import random
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.errors import StoreError

ROW = {"region": "eu", "name": "one", "trusted": "[]", "software_version": "1", "last_seen_ms": 1}


async def test_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()

    async def half() -> None:
        async with database.write() as connection:
            await replace(connection, schema.nodes, [ROW])
            await connection.execute(sa.text("INSERT INTO nonsense VALUES (1)"))

    with pytest.raises(StoreError):
        await half()
    async with database.read() as connection:
        assert (await connection.execute(sa.select(schema.nodes))).all() == []

    async def wrong() -> None:
        async with database.read() as connection:
            await connection.execute(sa.text("SELECT * FROM nonsense"))

    with pytest.raises(StoreError):
        await wrong()
    await database.close()


async def test_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: "):
        await Database(tmp_path / "file" / "d").open()


async def test_damaged_or_later_database_is_refused_in_one_line(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()
    await database.close()
    plain = sqlite3.connect(tmp_path / "d")
    plain.execute("UPDATE alembic_version SET version_num = '9999'")
    plain.commit()
    plain.close()
    with pytest.raises(StoreError, match="the data was written by a later version") as later:
        await Database(tmp_path / "d").open()
    assert "\n" not in str(later.value)
    content = (tmp_path / "e").with_name("d").read_bytes()
    (tmp_path / "e").write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
    with pytest.raises(StoreError) as damaged:
        await Database(tmp_path / "e").open()
    assert "\n" not in str(damaged.value)


async def test_read_only_connection_fails_at_most_one_write(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()

    async def write() -> None:
        async with database.write() as connection:
            await replace(connection, schema.nodes, [ROW])

    async with database.read() as connection:
        await connection.execute(sa.text("PRAGMA query_only = ON"))
    with pytest.raises(StoreError, match="readonly"):
        await write()
    await write()
    assert database.problem is None
    await database.close()


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_write_leaves_no_lock(tmp_path: Path, times: int) -> None:
    database = Database(tmp_path / "rooms" / "database")
    await database.open()
    chance = random.Random(7)

    async def write(name: str) -> None:
        async with database.write() as connection:
            for value in ("1", "2", "3"):
                await replace(connection, schema.facts, [{"name": name, "value": value}])

    for number in range(60):
        task = asyncio.ensure_future(write("cancelled"))
        for _ in range(times):
            await asyncio.sleep(chance.random() * 0.003)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await write(f"after-{number}")
    await database.close()

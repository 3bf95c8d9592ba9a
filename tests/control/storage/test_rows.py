from pathlib import Path

import sqlalchemy as sa

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import remove, replace

ROW = {"region": "eu", "name": "one", "trusted": "[]", "software_version": "1", "last_seen_ms": 1}


async def test_rows_are_replaced_and_removed_by_key(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()
    async with database.write() as connection:
        await replace(connection, schema.nodes, [])
        await replace(connection, schema.nodes, [ROW, {**ROW, "name": "two"}])
        await replace(connection, schema.nodes, [{**ROW, "last_seen_ms": 9}])
        await remove(connection, schema.nodes, [{"region": "eu", "name": "two"}])
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(schema.nodes))).all()
    assert [(r.name, r.last_seen_ms) for r in rows] == [("one", 9)]
    await database.close()


async def test_many_rows_are_removed_in_batches(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()
    rows = [{"digest": i.to_bytes(32, "big"), "body": b""} for i in range(2500)]
    async with database.write() as connection:
        await replace(connection, schema.effective_configs, rows)
        await remove(connection, schema.effective_configs, rows[1:])
        left = (await connection.execute(sa.select(schema.effective_configs.c.digest))).scalars().all()
    assert left == [rows[0]["digest"]]
    await database.close()

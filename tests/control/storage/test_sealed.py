from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import Damaged, SealedBytes, SealedText, read_all, read_undamaged, seal_text
from relay.errors import StoreError

ROWS = [{"kind": "K", "key": name, "body": f'{{"name": "{name}"}}', "updated_ms": 1} for name in ("a", "b")]


async def filled(path: Path) -> Database:
    database = Database(path)
    await database.open()
    async with database.write() as connection:
        await connection.execute(sa.insert(schema.documents), ROWS)
        await connection.execute(sa.insert(schema.contents), [{"name": "c", "payload": b"bytes"}])
    return database


async def test_intact_value_is_read(tmp_path: Path) -> None:
    database = await filled(tmp_path / "d")
    async with database.read() as connection:
        rows, damaged = await read_all(connection, schema.documents)
        assert [(r.key, r.body) for r in rows] == [(r["key"], r["body"]) for r in ROWS]
        assert damaged == []
        assert (await read_undamaged(connection, schema.contents))[0].payload == b"bytes"
    await database.close()


@pytest.mark.parametrize("damage", ["replace(body, 'name', 'nime')", "cast(x'ff' as text) || body", "''"])
async def test_bad_byte_is_detected_with_table_and_key(tmp_path: Path, damage: str) -> None:
    database = await filled(tmp_path / "d")
    await database.close()
    plain = sqlite3.connect(tmp_path / "d")
    plain.execute(f"UPDATE documents SET body = {damage} WHERE key = 'b'")
    plain.execute("UPDATE contents SET payload = x'00'")
    plain.commit()
    plain.close()
    again = Database(tmp_path / "d")
    await again.open()
    async with again.read() as connection:
        rows, damaged = await read_all(connection, schema.documents)
        assert ([r.key for r in rows], damaged) == (["a"], ["K b"])
        with pytest.raises(StoreError, match="table documents: K b is damaged: restore a backup"):
            await read_undamaged(connection, schema.documents)
        with pytest.raises(StoreError, match="table contents: c is damaged"):
            await read_undamaged(connection, schema.contents)
    await again.close()


def test_none_is_not_sealed() -> None:
    for kind in (SealedText(), SealedBytes()):
        assert kind.process_bind_param(None, None) is None
        assert kind.process_result_value(None, None) is None
    assert SealedText().process_result_value(seal_text("x"), None) == "x"
    with pytest.raises(Damaged):
        SealedText().process_result_value("x", None)

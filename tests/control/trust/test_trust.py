from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from relay.auth.key_sets import accept
from relay.control.secrets.vault import Vault
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.trust.trust import ROOT_FILE, Trust, has_authority
from relay.errors import StoreError

NOW = 1_800_000_000.0


async def loaded(database: Database, folder: Path, master: bytes = bytes(32)) -> Trust:
    trust = Trust(database, Vault(master), folder)
    await trust.load(NOW)
    return trust


async def test_keys_are_made_once_and_the_root_is_never_read(database: Database, tmp_path: Path) -> None:
    first = await loaded(database, tmp_path)
    assert accept(first.key_sets, held=None, root=first.root) == first.current
    root = tmp_path / ROOT_FILE
    assert root.stat().st_mode & 0o777 == 0o600
    root.unlink()
    second = await loaded(database, tmp_path)
    assert (second.current, second.root, second.authorities) == (first.current, first.root, first.authorities)
    assert not root.exists()


async def test_database_without_its_master_key_does_not_start(database: Database, tmp_path: Path) -> None:
    await loaded(database, tmp_path)
    with pytest.raises(StoreError, match=r"master\.key is not the one that belongs to this database"):
        await loaded(database, tmp_path, b"1" * 32)
    content = database._path.read_bytes() + database._path.with_name(database._path.name + "-wal").read_bytes()
    assert b"PRIVATE KEY" not in content


async def test_key_sets_that_cannot_be_used(database: Database, tmp_path: Path) -> None:
    await loaded(database, tmp_path)
    async with database.write() as connection:
        await connection.execute(sa.update(schema.facts).values(value="[]"))
    with pytest.raises(StoreError, match="the key sets in the database cannot be used"):
        await loaded(database, tmp_path)


async def test_root_that_cannot_be_written(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"root\.pem"):
        await loaded(database, tmp_path / "file")


@pytest.mark.parametrize("table", [schema.facts, schema.secrets])
async def test_attack_half_of_the_keys_gone(database: Database, tmp_path: Path, table: sa.Table) -> None:
    await loaded(database, tmp_path)
    root = (tmp_path / ROOT_FILE).read_bytes()
    async with database.write() as connection:
        await connection.execute(sa.delete(table))
    with pytest.raises(StoreError, match="is damaged"):
        await loaded(database, tmp_path)
    assert (tmp_path / ROOT_FILE).read_bytes() == root


async def test_root_of_another_database_is_not_overwritten(database: Database, tmp_path: Path) -> None:
    (tmp_path / ROOT_FILE).write_text("precious")
    with pytest.raises(StoreError, match="is of another database: move it away"):
        await loaded(database, tmp_path)
    assert (tmp_path / ROOT_FILE).read_text() == "precious"
    assert not await has_authority(database)

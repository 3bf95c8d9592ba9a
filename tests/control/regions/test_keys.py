from __future__ import annotations

import sqlalchemy as sa

from relay.control.regions.keys import download_key, master_key
from relay.control.secrets.vault import Vault
from relay.control.storage import schema
from relay.control.storage.database import Database

VAULT = Vault(bytes(32))


async def test_secret_is_generated_once_and_encrypted(database: Database) -> None:
    made = await master_key(database, VAULT)
    assert len(made) == 32
    assert await master_key(database, VAULT) == made, "addresses that were given stay good"
    content = database._path.read_bytes() + database._path.with_name(database._path.name + "-wal").read_bytes()
    assert made not in content


async def test_secret_that_was_readable_is_made_anew(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(sa.insert(schema.secrets), [{"name": "download-keys", "value": b"r" * 32}])
    made = await master_key(database, VAULT)
    assert made != b"r" * 32
    assert await master_key(database, VAULT) == made


async def test_database_without_its_master_key_makes_another_secret(database: Database) -> None:
    first = await master_key(database, VAULT)
    other = Vault(b"1" * 32)
    second = await master_key(database, other)
    assert second != first
    assert await master_key(database, other) == second


def test_each_region_has_its_own_key() -> None:
    assert download_key(b"1", "eu") == download_key(b"1", "eu")
    assert len({download_key(b"1", "eu"), download_key(b"1", "us"), download_key(b"2", "eu")}) == 3

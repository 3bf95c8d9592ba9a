from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa

from relay.auth.key_sets import sign
from relay.control.ledger import key_rows
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.trust.rotation import CA, MANIFEST, Keys
from relay.errors import StoreError
from tests.auth.test_key_sets import FIRST, ROOT

KEYS = Keys((sign(FIRST, ROOT),), {CA: b"ca", MANIFEST: b"m"}, generations={"eu": 1})


async def stored(database: Database, before: Keys, after: Keys) -> Keys:
    async with database.write() as connection:
        await key_rows.store(connection, before, after)
    async with database.read() as connection:
        return await key_rows.load(connection)


async def test_keys_are_stored_by_their_differences(database: Database) -> None:
    assert await stored(database, Keys(), Keys()) == Keys()
    assert await stored(database, Keys(), KEYS) == KEYS
    changed = dataclasses.replace(KEYS, secrets={CA: b"other"}, downloads_ms=3)
    assert await stored(database, KEYS, changed) == changed
    assert await stored(database, changed, Keys()) == Keys()
    unsigned = Keys(secrets={MANIFEST: b"m"})
    assert await stored(database, Keys(), unsigned) == unsigned


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("key-sets", "[", "cannot be used"),
        ("key-sets", "[]", "there is no key set"),
        ("key-changes", '{"proposal": {}}', "cannot be used"),
        ("key-changes", "7", "cannot be used"),
    ],
)
async def test_damaged_key_sets_are_named(database: Database, name: str, value: str, reason: str) -> None:
    await stored(database, Keys(), KEYS)
    async with database.write() as connection:
        await connection.execute(sa.update(schema.facts).where(schema.facts.c.name == name).values(value=value))
    with pytest.raises(StoreError, match=reason):
        await stored(database, KEYS, KEYS)


async def test_key_sets_that_are_gone(database: Database) -> None:
    await stored(database, Keys(), KEYS)
    async with database.write() as connection:
        await connection.execute(sa.delete(schema.facts).where(schema.facts.c.name == "key-sets"))
    with pytest.raises(StoreError, match="table facts is damaged: the key sets are gone"):
        await stored(database, KEYS, KEYS)

from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa

from relay.auth.revocations import Kind
from relay.control.access.keys import ApiKeys
from relay.control.access.revocations import Revocation
from relay.control.ledger import access_rows
from relay.control.ledger.state import State
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import seal_text
from relay.errors import StoreError
from tests.control.access.test_keys import ONE, OTHER, TWO
from tests.control.access.test_nodes import GRANT, NODE
from tests.control.access.test_tokens import TOKEN

REVOKED = Revocation(Kind.SUBJECT, "web", "stolen", "ann", 1)
FULL = State(
    api_keys=ApiKeys().put([ONE, OTHER]),
    tokens={TOKEN.id: TOKEN},
    revocations={REVOKED.id: REVOKED},
    join_grants={GRANT.id: GRANT},
    joined_nodes={NODE.id: NODE},
)


async def stored(database: Database, before: State, after: State) -> State:
    async with database.write() as connection:
        await access_rows.store(connection, before, after)
    async with database.read() as connection:
        return State(**await access_rows.load(connection))


async def test_round_trip(database: Database) -> None:
    assert await stored(database, State(), FULL) == FULL
    rotated = dataclasses.replace(ONE, replaced_by=TWO.id)
    changed = State(api_keys=FULL.api_keys.put([rotated, TWO]).without([OTHER.id]), revocations=FULL.revocations)
    assert await stored(database, FULL, changed) == changed
    assert await stored(database, changed, State()) == State()
    assert await stored(database, State(), State()) == State()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "table tokens: token-aaaaaaaaaa cannot be read"),
        ('{"digest": "aa"}', "table tokens: token-aaaaaaaaaa cannot be read"),
        (None, "table tokens: token-x is damaged"),
    ],
)
async def test_damage_is_named(database: Database, body: str | None, message: str) -> None:
    await stored(database, State(), FULL)
    async with database.write() as connection:
        table = schema.tokens
        if body is None:
            await connection.execute(sa.update(table).values(id="token-x"))
        else:
            sealed = seal_text(body)
            await connection.execute(sa.text("UPDATE tokens SET body = :body"), {"body": sealed})
    with pytest.raises(StoreError, match=message):
        await stored(database, FULL, FULL)

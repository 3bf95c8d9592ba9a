"""Reads and writes who may do what: agents' keys, people's tokens, revocations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.access.keys import ApiKey, ApiKeys
from relay.control.access.revocations import Revocation
from relay.control.access.tokens import Token
from relay.control.ledger.state import State
from relay.control.storage import schema
from relay.control.storage.rows import remove, replace
from relay.control.storage.sealed import read_undamaged
from relay.documents import canonical_json
from relay.errors import StoreError


class _Stored(Protocol):
    """A value that has a row of its own."""

    @property
    def id(self) -> str: ...

    def plain(self) -> dict[str, Any]: ...

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Any: ...


V = TypeVar("V", bound=_Stored)


async def load(connection: AsyncConnection) -> tuple[ApiKeys, dict[str, Token], dict[str, Revocation]]:
    """Load everything.

    Raises:
        StoreError: a row is damaged.
    """
    keys = await _load(connection, schema.api_keys, ApiKey)
    tokens = await _load(connection, schema.tokens, Token)
    revocations = await _load(connection, schema.revocations, Revocation)
    return ApiKeys().put(keys), {t.id: t for t in tokens}, {r.id: r for r in revocations}


async def _load(connection: AsyncConnection, table: sa.Table, kind: type[V]) -> list[V]:
    found = []
    for row in await read_undamaged(connection, table):
        try:
            value: V = kind.from_plain(json.loads(row.body))
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"table {table.name}: {row.id} cannot be read: {error!r}") from None
        # A digest proves that a value is unaltered, but not that it is stored under its own name.
        if value.id != row.id:
            raise StoreError(f"table {table.name}: {row.id} is damaged: restore a backup")
        found.append(value)
    return found


async def store(connection: AsyncConnection, before: State, after: State) -> None:
    """Store the differences between two states, in the caller's transaction."""
    for were, are in before.api_keys.changed_shards(after.api_keys):
        await _store(connection, schema.api_keys, were, are)
    await _store(connection, schema.tokens, before.tokens, after.tokens)
    await _store(connection, schema.revocations, before.revocations, after.revocations)


async def _store(connection: AsyncConnection, table: sa.Table, before: Mapping[str, V], after: Mapping[str, V]) -> None:
    if before is after:
        return
    fresh: Iterable[V] = (value for key, value in after.items() if before.get(key) != value)
    await replace(connection, table, [{"id": v.id, "body": canonical_json(v.plain()).decode()} for v in fresh])
    await remove(connection, table, [{"id": key} for key in before.keys() - after.keys()])

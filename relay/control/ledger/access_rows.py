"""Reads and writes who may do what: agents' keys, people's tokens, revocations, nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.access.keys import ApiKey, ApiKeys
from relay.control.access.nodes import JoinedNode, JoinGrant
from relay.control.access.revocations import Revocation
from relay.control.access.sessions import Session
from relay.control.access.tokens import Token
from relay.control.ledger.differences import differences
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
_KINDS: Mapping[str, tuple[sa.Table, type[Any]]] = {
    "tokens": (schema.tokens, Token),
    "sessions": (schema.sessions, Session),
    "revocations": (schema.revocations, Revocation),
    "join_grants": (schema.join_grants, JoinGrant),
    "joined_nodes": (schema.joined_nodes, JoinedNode),
}
"""Field of the state → its table, and the kind of its values."""


async def load(connection: AsyncConnection) -> dict[str, Any]:
    """Load everything: field of the state → its value.

    Raises:
        StoreError: a row is damaged.
    """
    loaded: dict[str, Any] = {"api_keys": ApiKeys().put(await _load(connection, schema.api_keys, ApiKey))}
    for name, (table, kind) in _KINDS.items():
        loaded[name] = {value.id: value for value in await _load(connection, table, kind)}
    return loaded


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
    for name, (table, _) in _KINDS.items():
        await _store(connection, table, getattr(before, name), getattr(after, name))


async def _store(connection: AsyncConnection, table: sa.Table, before: Mapping[str, V], after: Mapping[str, V]) -> None:
    fresh, dropped = differences(before, after)
    rows = [{"id": key, "body": canonical_json(value.plain()).decode()} for key, value in fresh.items()]
    await replace(connection, table, rows)
    await remove(connection, table, [{"id": key} for key in dropped])

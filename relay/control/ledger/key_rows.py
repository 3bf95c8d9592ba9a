"""Reads and writes the control plane's own keys."""

from __future__ import annotations

import json

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.auth.key_sets import KeyChain
from relay.control.ledger.differences import differences
from relay.control.storage import schema
from relay.control.storage.rows import remove, replace
from relay.control.storage.sealed import read_undamaged
from relay.control.trust.rotation import CA, Keys
from relay.documents import canonical_json
from relay.errors import StoreError

_KEY_SETS, _CHANGES = "key-sets", "key-changes"


async def load(connection: AsyncConnection) -> Keys:
    """Load the keys; empty before they are made.

    Raises:
        StoreError: they are damaged.
    """
    names: sa.ColumnElement[bool] = schema.facts.c.name.in_([_KEY_SETS, _CHANGES])
    facts = {row.name: row.value for row in await read_undamaged(connection, schema.facts, names)}
    secrets = {row.name: row.value for row in await read_undamaged(connection, schema.secrets)}
    if CA in secrets and _KEY_SETS not in facts:
        raise StoreError("table facts is damaged: the key sets are gone: restore a backup")
    try:
        changes = json.loads(facts.get(_CHANGES, "{}"))
        keys = Keys.from_plain(json.loads(facts.get(_KEY_SETS, "[]")), changes, secrets)
        if _KEY_SETS in facts:
            KeyChain.of(keys.key_sets)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"the key sets in the database cannot be used: {error}") from None
    return keys


async def store(connection: AsyncConnection, before: Keys, after: Keys) -> None:
    """Store the differences between two states, in the caller's transaction."""
    if after is before:
        return
    fresh, dropped = differences(before.secrets, after.secrets)
    await replace(connection, schema.secrets, [{"name": name, "value": fresh[name]} for name in fresh])
    await remove(connection, schema.secrets, [{"name": name} for name in dropped])
    facts = {_CHANGES: canonical_json(after.plain()).decode()}
    if after.key_sets:
        facts[_KEY_SETS] = json.dumps([item.plain() for item in after.key_sets])
    elif before.key_sets:
        await remove(connection, schema.facts, [{"name": _KEY_SETS}])
    await replace(connection, schema.facts, [{"name": name, "value": value} for name, value in facts.items()])

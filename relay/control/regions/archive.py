"""All published contents by hash: shows exactly what ran, long after the policy has changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.errors import NotFound
from relay.fleet.view import rfc3339
from relay.opamp.offer import OfferedSlot
from relay.policy.snapshot import ConfigContent, Snapshot

_SLOTS = "application/vnd.opamp-relay.slots+json"
"""Content type of the rows that list a config_hash's parts: slot → content hash."""
_HASH_BYTES = 32


class Archive:
    """Stores published contents, and the parts of each config_hash that agents were offered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[bytes] = set()

    async def load(self) -> None:
        """Load the hashes that are stored."""
        async with self._database.read() as connection:
            self._known = set((await connection.execute(sa.select(schema.configs.c.hash))).scalars())

    async def keep(self, snapshot: Snapshot, now_ms: int) -> None:
        """Store the contents of a policy that are not stored yet."""
        contents = {c.content_hash: c for c in _contents(snapshot) if c.content_hash not in self._known}
        rows = [_row(key, c.template.spec.content_type, c.render(), now_ms) for key, c in contents.items()]
        if rows:
            async with self._database.write() as connection:
                await replace(connection, schema.configs, rows)
            self._known.update(contents)

    async def keep_offered(
        self, connection: AsyncConnection, offered: Iterable[tuple[bytes, tuple[OfferedSlot, ...]]], now_ms: int
    ) -> set[bytes]:
        """Store the parts of config hashes, in the caller's transaction. Returns the hashes that are new."""
        fresh = {key: slots for key, slots in offered if key and slots and key not in self._known}
        rows = [
            _row(key, _SLOTS, json.dumps({s.slot: s.content_hash.hex() for s in slots}).encode(), now_ms)
            for key, slots in fresh.items()
        ]
        if rows:
            await replace(connection, schema.configs, rows)
        return set(fresh)

    def mark_stored(self, hashes: set[bytes]) -> None:
        """Remember the hashes that `keep_offered` wrote. Call it after the commit."""
        self._known |= hashes

    async def get(self, prefix: str) -> dict[str, Any]:
        """One config, by the hash that agents see or by a content hash. At least its first 8 digits are needed.

        Returns:
            `{hash, kind, name, slots: {SLOT: {hash, content_type, body, published}}}`; the kind is `config` or `content`.

        Raises:
            NotFound: no hash begins with `prefix`, or more than one does.
        """
        row = await self._find(prefix)
        if row.content_type != _SLOTS:
            return {"hash": row.hash.hex(), "kind": "content", "name": "", "slots": {"": _view(row)}}
        slots = {}
        for slot, content in json.loads(row.body).items():
            slots[slot] = _view(await self._find(content))
        return {"hash": row.hash.hex(), "kind": "config", "name": "", "slots": slots}

    async def _find(self, prefix: str) -> Any:
        if not 8 <= len(prefix) <= 2 * _HASH_BYTES or not set(prefix) <= set("0123456789abcdef"):
            raise NotFound(f"{prefix} is not a hash: expected at least its first 8 digits")
        low, high = (bytes.fromhex(prefix.ljust(2 * _HASH_BYTES, digit)) for digit in "0f")
        query = sa.select(schema.configs).where(schema.configs.c.hash >= low, schema.configs.c.hash <= high)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.limit(2))).all()
        if not rows:
            raise NotFound(f"no published config has the hash {prefix}")
        if len(rows) > 1:
            raise NotFound(f"more than one hash begins with {prefix}: give more digits")
        return rows[0]

    async def expire(self, used: set[bytes], before_ms: int) -> None:
        """Delete what was published before a time and is not in `used`."""
        query = sa.select(schema.configs.c.hash).where(schema.configs.c.published_ms < before_ms)
        async with self._database.write() as connection:
            expired = set((await connection.execute(query)).scalars()) - used
            for key in expired:
                await connection.execute(sa.delete(schema.configs).where(schema.configs.c.hash == key))
        self._known -= expired


def _contents(snapshot: Snapshot) -> Iterable[ConfigContent]:
    return (c for a in snapshot.assignments for c in a.contents if isinstance(c, ConfigContent))


def _row(key: bytes, content_type: str, body: bytes, now_ms: int) -> dict[str, Any]:
    return {"hash": key, "content_type": content_type, "body": body, "published_ms": now_ms}


def _view(row: Any) -> dict[str, Any]:
    return {
        "hash": row.hash.hex(),
        "content_type": row.content_type,
        "body": row.body.decode(),
        "published": rfc3339(row.published_ms),
    }

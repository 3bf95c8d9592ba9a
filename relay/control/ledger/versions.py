"""All versions of a document: its generations, counted from 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import NotFound
from relay.fleet.view import rfc3339
from relay.ids import sha256

_DIGITS = 16
_TABLE = schema.versions


async def add(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]], actor: str, now_ms: int) -> None:
    """Add the next generation of each document, in the caller's transaction.

    Args:
        rows: `kind` and `key` of each document; also `body`, unless it was deleted.
    """
    inserts = []
    for row in rows:
        newest = sa.select(sa.func.max(_TABLE.c.generation)).where(
            _TABLE.c.kind == row["kind"], _TABLE.c.key == row["key"]
        )
        inserts.append(
            {
                "kind": row["kind"],
                "key": row["key"],
                "generation": ((await connection.execute(newest)).scalar() or 0) + 1,
                "body": row.get("body", ""),
                "actor": actor[:256],
                "at_ms": now_ms,
            }
        )
    if inserts:
        await connection.execute(sa.insert(_TABLE), inserts)


class Versions:
    """Reads the generations of documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def listing(self, kind: str, key: str) -> list[dict[str, Any]]:
        """The generations of a document, oldest first.

        Raises:
            NotFound: there has never been such a document.
        """
        return [
            {
                "generation": row.generation,
                "at": rfc3339(row.at_ms),
                "actor": row.actor,
                "deleted": not row.body,
                "document_digest": sha256(row.body.encode()).hex()[:_DIGITS] if row.body else "",
            }
            for row in await self._existing(kind, key)
        ]

    async def get(self, kind: str, key: str, generation: int) -> dict[str, Any]:
        """A document as it was in one generation.

        Raises:
            NotFound: it has no such generation, or that generation deleted it.
        """
        rows = await self._existing(kind, key)
        for row in rows:
            if row.generation == generation and row.body:
                return dict(json.loads(row.body))
        if 1 <= generation <= len(rows):
            raise NotFound(f"generation {generation} deleted {kind} {key}")
        raise NotFound(f"{kind} {key} has no generation {generation}; it has 1 to {len(rows)}")

    async def bodies(self, kind: str, key: str) -> list[dict[str, Any]]:
        """All bodies of a document, newest first; empty if it has never existed."""
        return [dict(json.loads(row.body)) for row in reversed(await self._rows(kind, key)) if row.body]

    async def _existing(self, kind: str, key: str) -> list[Any]:
        if not (rows := await self._rows(kind, key)):
            raise NotFound(f"there has never been a {kind} {key}")
        return rows

    async def _rows(self, kind: str, key: str) -> list[Any]:
        query = sa.select(_TABLE).where(_TABLE.c.kind == kind, _TABLE.c.key == key)
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(_TABLE.c.generation))).all())

    async def by_digest(self, digest: str) -> tuple[dict[str, Any], str] | None:
        """(document, KIND/NAME@GENERATION) of the newest whose digest begins with `digest`; None if there is none."""
        async with self._database.read() as connection:
            rows = await connection.stream(sa.select(_TABLE).order_by(_TABLE.c.at_ms.desc()))
            async for row in rows:
                if row.body and sha256(row.body.encode()).hex().startswith(digest):
                    return dict(json.loads(row.body)), f"{row.kind}/{row.key}@{row.generation}"
        return None

"""Every form that a document ever had: its generations, counted from 1."""

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
    """Write the next generation of each, in the caller's transaction.

    Args:
        rows: `kind` and `key` of documents, and `body` unless they were deleted.
    """
    made = []
    for row in rows:
        newest = sa.select(sa.func.max(_TABLE.c.generation)).where(
            _TABLE.c.kind == row["kind"], _TABLE.c.key == row["key"]
        )
        made.append(
            {
                "kind": row["kind"],
                "key": row["key"],
                "generation": ((await connection.execute(newest)).scalar() or 0) + 1,
                "body": row.get("body", ""),
                "actor": actor[:256],
                "at_ms": now_ms,
            }
        )
    if made:
        await connection.execute(sa.insert(_TABLE), made)


class Versions:
    """Reading them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def listing(self, kind: str, key: str) -> list[dict[str, Any]]:
        """The generations of a document, oldest first.

        Raises:
            NotFound: there never was one of that name.
        """
        return [
            {
                "generation": row.generation,
                "at": rfc3339(row.at_ms),
                "actor": row.actor,
                "deleted": not row.body,
                "document_digest": sha256(row.body.encode()).hex()[:_DIGITS] if row.body else "",
            }
            for row in await self._known(kind, key)
        ]

    async def get(self, kind: str, key: str, generation: int) -> dict[str, Any]:
        """A document as it was.

        Raises:
            NotFound: it has no such generation, or was deleted with it.
        """
        rows = await self._known(kind, key)
        for row in rows:
            if row.generation == generation and row.body:
                return dict(json.loads(row.body))
        if 1 <= generation <= len(rows):
            raise NotFound(f"{kind} {key} was deleted with generation {generation}")
        raise NotFound(f"{kind} {key} has generations 1 to {len(rows)}")

    async def bodies(self, kind: str, key: str) -> list[dict[str, Any]]:
        """All that a document ever was, the newest first; empty where there never was one."""
        return [dict(json.loads(row.body)) for row in reversed(await self._rows(kind, key)) if row.body]

    async def _known(self, kind: str, key: str) -> list[Any]:
        if not (rows := await self._rows(kind, key)):
            raise NotFound(f"there never was a {kind} {key}")
        return rows

    async def _rows(self, kind: str, key: str) -> list[Any]:
        query = sa.select(_TABLE).where(_TABLE.c.kind == kind, _TABLE.c.key == key)
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(_TABLE.c.generation))).all())

    async def by_digest(self, digest: str) -> tuple[dict[str, Any], str] | None:
        """(the document, KIND/NAME@GENERATION) whose digest begins so, the newest; None where none does."""
        async with self._database.read() as connection:
            rows = await connection.stream(sa.select(_TABLE).order_by(_TABLE.c.at_ms.desc()))
            async for row in rows:
                if row.body and sha256(row.body.encode()).hex().startswith(digest):
                    return dict(json.loads(row.body)), f"{row.kind}/{row.key}@{row.generation}"
        return None

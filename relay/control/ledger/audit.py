"""The audit: who did what, written in the transaction of the change. Each row's hash covers the row before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.access.actor import Actor
from relay.control.ledger.change import Entry
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.documents import canonical_json
from relay.errors import NotFound
from relay.fleet.view import rfc3339
from relay.ids import sha256

_NO_HASH = bytes(32)


async def add(connection: AsyncConnection, by: Actor, entries: Sequence[Entry], now_ms: int) -> None:
    """Append entries in the caller's transaction. Safe because the database has one writer at a time."""
    if not entries:
        return
    query = sa.select(schema.audit.c.number, schema.audit.c.hash).order_by(schema.audit.c.number.desc()).limit(1)
    last = (await connection.execute(query)).one_or_none()
    number, digest = (last.number, last.hash) if last is not None else (0, _NO_HASH)
    rows = []
    for entry in entries:
        number += 1
        row = {
            "number": number,
            "at_ms": now_ms,
            "actor": by.name[:256],
            "verified": by.verified,
            "action": entry.action,
            "subject": entry.subject[:320],
            "before": entry.before,
            "after": entry.after,
            "reason": entry.reason[:4000],
            "address": by.address[:64],
            "credential": by.credential[:64],
        }
        digest = _hash(row, digest)
        rows.append({**row, "hash": digest})
    await connection.execute(sa.insert(schema.audit), rows)


def _hash(row: dict[str, Any], before: bytes) -> bytes:
    # Rows of earlier releases have neither of these columns.
    hashed = {name: value for name, value in row.items() if value or name not in ("address", "credential")}
    return sha256(before + canonical_json(hashed))


def _view(row: sa.RowMapping) -> dict[str, Any]:
    plain = {str(name): value for name, value in row.items() if name != "at_ms"}
    return {**plain, "at": rfc3339(row["at_ms"]), "hash": row["hash"].hex()}


class Audit:
    """Reads the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def listing(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        actor: str = "",
        subject: str = "",
        limit: int = 1000,
        after: int | None = None,
    ) -> list[dict[str, Any]]:
        """The newest entries, or the first ones after an entry; oldest first.

        Args:
            subject: KIND/NAME, or a prefix of it.
            after: the number of an entry.
        """
        table = schema.audit.c
        query = sa.select(schema.audit)
        if since_ms is not None:
            query = query.where(table.at_ms >= since_ms)
        if until_ms is not None:
            query = query.where(table.at_ms < until_ms)
        if actor:
            query = query.where(table.actor == actor)
        if subject:
            query = query.where(table.subject.startswith(subject, autoescape=True))
        if after is not None:
            query = query.where(table.number > after)
        query = query.order_by(table.number if after is not None else table.number.desc()).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_view(row) for row in (rows if after is not None else reversed(rows))]

    async def get(self, number: int) -> dict[str, Any]:
        """One entry.

        Raises:
            NotFound: there is no entry with that number.
        """
        query = sa.select(schema.audit).where(schema.audit.c.number == number)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"the audit has no entry {number}")
        return _view(row)

    async def verify(self) -> dict[str, Any]:
        """Check that no row was altered, and none is missing between the first and the last.

        Returns:
            `{entries, ok, broken_at, hash}`. `broken_at` is the number of the first row that does not fit, or None. `hash`
            is the last hash: compare it with one that you noted earlier to see whether rows were cut off the end.
        """
        digest, count, expected = _NO_HASH, 0, 1
        async with self._database.read() as connection:
            rows = await connection.execute(sa.select(schema.audit).order_by(schema.audit.c.number))
            for row in rows.mappings():
                plain = {k: v for k, v in row.items() if k != "hash"}
                if row["number"] != expected or _hash(plain, digest) != row["hash"]:
                    return {"entries": count, "ok": False, "broken_at": row["number"], "hash": digest.hex()}
                digest, count, expected = row["hash"], count + 1, expected + 1
        return {"entries": count, "ok": True, "broken_at": None, "hash": digest.hex()}

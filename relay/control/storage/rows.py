"""Rows by their primary keys, in words that every database knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_AT_ONCE = 1000
"""Values in one statement; databases bound them."""


async def replace(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, taking the place of those with the same primary keys."""
    if not rows:
        return
    await remove(connection, table, rows)
    await connection.execute(sa.insert(table), rows)


async def remove(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete the rows with the primary keys of `rows`."""
    keys = list(table.primary_key.columns)
    if len(keys) == 1:
        values = [row[keys[0].name] for row in rows]
        for i in range(0, len(values), _AT_ONCE):
            await connection.execute(sa.delete(table).where(keys[0].in_(values[i : i + _AT_ONCE])))
        return
    for row in rows:
        await connection.execute(sa.delete(table).where(*(key == row[key.name] for key in keys)))

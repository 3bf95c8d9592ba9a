"""Replace and delete rows by primary key, in portable SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_MAX_VALUES = 1000
"""The most values in one statement; databases have a limit."""


async def replace(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, replacing those with the same primary keys."""
    if not rows:
        return
    await remove(connection, table, rows)
    await connection.execute(sa.insert(table), rows)


async def remove(connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete the rows that have the primary keys of `rows`."""
    keys = list(table.primary_key.columns)
    if len(keys) == 1:
        values = [row[keys[0].name] for row in rows]
        for i in range(0, len(values), _MAX_VALUES):
            await connection.execute(sa.delete(table).where(keys[0].in_(values[i : i + _MAX_VALUES])))
        return
    for row in rows:
        await connection.execute(sa.delete(table).where(*(key == row[key.name] for key in keys)))

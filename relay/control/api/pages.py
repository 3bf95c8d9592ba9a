"""Paging: the rows after a given one, up to a limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Annotated, Any

from fastapi import Query

from relay.errors import NotFound

Limit = Annotated[int | None, Query(ge=1, le=100_000, description="the maximum number of rows")]
After = Annotated[str, Query(description="the last name of the page before")]
Row = dict[str, Any]
_SLICE = 500


def _name(row: Row) -> str:
    return str(row["name"])


def behind(rows: list[Row], name: str, key: Callable[[Row], str] = _name) -> list[Row]:
    """The rows after the one with a name; all rows if the name is empty.

    Raises:
        NotFound: no row has that name.
    """
    if not name:
        return rows
    for i in range(len(rows) - 1, -1, -1):
        if key(rows[i]) == name:
            return rows[i + 1 :]
    raise NotFound(f"after: {name} is not in this list")


async def as_json(slices: AsyncIterable[Iterable[Row]]) -> AsyncIterator[bytes]:
    """A JSON list with one row per line, slice by slice. Yields to other tasks between slices, and buffers only one."""
    separator = "["
    async for rows in slices:
        part = ""
        for row in rows:
            part += separator + json.dumps(row)
            separator = ",\n"
        yield part.encode()
        await asyncio.sleep(0)
    yield b"[]\n" if separator == "[" else b"]\n"


async def in_slices(rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
    """Cut a list of rows into slices, for `as_json`."""
    for i in range(0, len(rows), _SLICE):
        yield rows[i : i + _SLICE]

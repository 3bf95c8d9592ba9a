"""Lists in pieces: at most so many rows, behind one that was seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Annotated, Any

from fastapi import Query

from relay.errors import NotFound

Limit = Annotated[int | None, Query(ge=1, le=100_000, description="the most that are given")]
After = Annotated[str, Query(description="the last name before")]
Row = dict[str, Any]
_SLICE = 500


def _name(row: Row) -> str:
    return str(row["name"])


def behind(rows: list[Row], name: str, key: Callable[[Row], str] = _name) -> list[Row]:
    """The rows behind the one of a name; all where no name is given.

    Raises:
        NotFound: none has it.
    """
    if not name:
        return rows
    for i in range(len(rows) - 1, -1, -1):
        if key(rows[i]) == name:
            return rows[i + 1 :]
    raise NotFound(f"after: {name} is not in this list")


async def as_json(slices: AsyncIterable[Iterable[Row]]) -> AsyncIterator[bytes]:
    """A JSON list, a row a line, slice by slice: nodes are answered meanwhile, and no more than one waits to be sent."""
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
    """Rows that are there already, for `as_json`."""
    for i in range(0, len(rows), _SLICE):
        yield rows[i : i + _SLICE]

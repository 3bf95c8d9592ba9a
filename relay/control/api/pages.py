"""Lists in pieces: at most so many rows, behind one that was seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
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


async def in_slices(rows: Iterable[Row]) -> AsyncIterator[bytes]:
    """A JSON list, a row a line, made in slices: nodes are answered meanwhile, and no more than one waits to be sent."""
    part, separator = "", "["
    for i, row in enumerate(rows, start=1):
        part += separator + json.dumps(row)
        separator = ",\n"
        if i % _SLICE == 0:
            yield part.encode()
            part = ""
            await asyncio.sleep(0)
    yield (part + ("[]" if separator == "[" else "]") + "\n").encode()

"""Lists in pieces: at most so many rows, behind one that was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Query

from relay.errors import NotFound

Limit = Annotated[int | None, Query(ge=1, le=100_000, description="the most that are given")]
After = Annotated[str, Query(description="the last name before")]
Row = dict[str, Any]


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

from __future__ import annotations

import json

import pytest

from relay.control.api.pages import as_json, behind, in_slices
from relay.errors import NotFound


def test_behind_returns_the_rows_after_one() -> None:
    rows = [{"name": name} for name in "abc"]
    assert behind(rows, "") == rows
    assert behind(rows, "a") == [{"name": "b"}, {"name": "c"}]
    assert behind(rows, "c") == []
    with pytest.raises(NotFound, match="after: d is not in this list"):
        behind(rows, "d")


def test_behind_skips_all_rows_of_one_name() -> None:
    rows = [{"agent": "a", "slot": ""}, {"agent": "a", "slot": "x"}, {"agent": "b", "slot": ""}]
    assert behind(rows, "a", lambda row: row["agent"]) == [{"agent": "b", "slot": ""}]


@pytest.mark.parametrize("number", [0, 1, 499, 500, 501, 1_000])
async def test_sliced_list_equals_the_whole_list(number: int) -> None:
    rows = [{"name": f"n{i}", "text": 'a "quoted" ü'} for i in range(number)]
    pieces = [piece async for piece in as_json(in_slices(rows))]
    assert json.loads(b"".join(pieces)) == rows
    assert len(pieces) == -(-number // 500) + 1, "a slice each, and the end"

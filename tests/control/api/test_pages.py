from __future__ import annotations

import pytest

from relay.control.api.pages import behind
from relay.errors import NotFound


def test_what_is_behind_a_row() -> None:
    rows = [{"name": name} for name in "abc"]
    assert behind(rows, "") == rows
    assert behind(rows, "a") == [{"name": "b"}, {"name": "c"}]
    assert behind(rows, "c") == []
    with pytest.raises(NotFound, match="after: d is not in this list"):
        behind(rows, "d")


def test_behind_the_last_of_several_of_one_name() -> None:
    rows = [{"agent": "a", "slot": ""}, {"agent": "a", "slot": "x"}, {"agent": "b", "slot": ""}]
    assert behind(rows, "a", lambda row: row["agent"]) == [{"agent": "b", "slot": ""}]

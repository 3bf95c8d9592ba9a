from __future__ import annotations

from relay.control.ledger.differences import differences


def test_what_is_new_changed_and_removed() -> None:
    before = {"same": [1], "changed": [2], "gone": [3]}
    fresh, removed = differences(before, {"same": [1], "changed": [9], "new": [4]})
    assert fresh == {"changed": [9], "new": [4]}
    assert set(removed) == {"gone"}
    assert differences(before, before) == ({}, ())

from __future__ import annotations

from relay.control.heads import bounded


def test_each_port_has_bounds_of_its_own() -> None:
    assert bounded() is not bounded()

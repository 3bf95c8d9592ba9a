from __future__ import annotations

import pytest

from relay.errors import Conflict, NotFound
from relay.fleet.names import Names, resolve
from relay.ids import format_uid

KNOWN = [(Names(f"agent-{i}", bytes([i]) * 16, f"box-{i % 2}"), i) for i in range(8)] + [
    (Names("agent", b"\xaa" * 16, "own"), 99)
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("agent", 99), ("agent-3", 3), ("own", 99), (format_uid(b"\x02" * 16)[:9], 2), ("0505", 5), ("aaaa", 99)],
)
def test_resolve_by_name_or_prefix(name: str, meant: int) -> None:
    assert resolve(name, KNOWN) == meant


def test_resolve_unknown_and_ambiguous_names() -> None:
    with pytest.raises(NotFound, match="no agent matches age; a prefix needs at least 4 characters"):
        resolve("age", KNOWN)
    with pytest.raises(NotFound, match=r"no agent matches agents$"):
        resolve("agents", KNOWN)
    with pytest.raises(Conflict, match="agen matches 9 agents: agent, agent-0, agent-1, agent-2, agent-3 and 4 more"):
        resolve("agen", KNOWN)
    with pytest.raises(Conflict, match="box-1 matches 4 agents"):
        resolve("box-1", KNOWN)

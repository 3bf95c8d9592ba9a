from __future__ import annotations

import json

from relay.control.access.nodes import JoinedNode, JoinGrant

GRANT = JoinGrant("join-1", "a" * 64, "eu", "", 2, False, 1, "ann", 9, (("one", "b" * 64),))
NODE = JoinedNode("eu", "one", "b" * 64, 99, 1, "join-1", revoked="stolen")


def test_plain_values() -> None:
    assert NODE.id == "eu/one"
    assert JoinGrant.from_plain(json.loads(json.dumps(GRANT.plain()))) == GRANT
    assert JoinedNode.from_plain(json.loads(json.dumps(NODE.plain()))) == NODE

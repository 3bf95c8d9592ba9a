from __future__ import annotations

from typing import Literal

import pytest

from relay.link.protocol.peer import Peer
from relay.pb.relay.v1 import link_pb2


@pytest.mark.parametrize("trusted", ["all", (), ("tier", "zone")])
def test_node_identifies_itself(trusted: Literal["all"] | tuple[str, ...]) -> None:
    peer = Peer("eu", "one", "3f2c", "1.2", trusted)
    assert Peer.of(link_pb2.NodeIdentity.FromString(peer.message().SerializeToString())) == peer

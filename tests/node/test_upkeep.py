from __future__ import annotations

from relay.node.registry import EFFECTIVE_BUCKET
from tests.conftest import Programs, eventually
from tests.wire import TestAgent


async def test_unused_data_is_removed(programs: Programs) -> None:
    node = await programs.node(node={"record_ttl": "1h"})
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await eventually(lambda: node.registry.get(agent.uid))
    node.store.put(EFFECTIVE_BUCKET, b"d" * 32, b"nobody's")
    node.store.damaged[("records", b"x")] = None
    await node.store.flush()
    await node.upkeep.expire()
    await node.store.flush()
    assert node.store.keys(EFFECTIVE_BUCKET) == []
    assert not node.store.damaged
    assert node.registry.get(agent.uid) is not None
    await agent.close()

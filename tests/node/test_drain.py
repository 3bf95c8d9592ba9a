from relay.node.drain import drain
from relay.testing.clock import ManualClock
from relay.transport.ports import CloseReason
from tests.conftest import Programs, eventually
from tests.wire import TestAgent, WebSocketPipe


class Recorded:
    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.reasons: list[CloseReason] = []

    def close(self, reason: CloseReason) -> None:
        self.reasons.append(reason)


async def test_every_connection_is_closed_once() -> None:
    clock = ManualClock()
    connections = [Recorded(clock) for _ in range(450)]
    await drain(connections, 0, clock)  # type: ignore[arg-type]
    assert all(c.reasons == [CloseReason.DRAINING] for c in connections)
    await drain([], 10, clock)


async def test_connections_are_closed_evenly(programs: Programs) -> None:
    node = await programs.node(drain={"seconds": 0.4})
    agents = [await TestAgent.over("websocket", node.ports) for _ in range(4)]
    for agent in agents:
        await agent.hello()
    import asyncio

    loop = asyncio.get_running_loop()
    began = loop.time()
    stopping = asyncio.create_task(programs.stop(node))
    at = []
    for agent in agents:
        assert isinstance(agent.pipe, WebSocketPipe)
        assert await agent.pipe.socket.close_code() == 1001
        at.append(loop.time() - began)
        await agent.close()
    assert at[0] < 0.1
    assert at[-1] >= 0.29
    await stopping
    await eventually(lambda: node.hub.connected == 0)

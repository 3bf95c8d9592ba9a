from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from relay.aio.clock import SystemClock
from relay.errors import Malformed
from relay.observe.metrics import NodeMetrics
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.authentication import Authenticator
from relay.transport.grpc import SERVICE, GrpcAgents
from relay.transport.peers import TrustedProxies
from relay.transport.places import Places
from relay.transport.ports import CloseReason, StreamSettings
from tests.conftest import eventually
from tests.transport.stand import Echo
from tests.wire import GrpcPipe

UID = bytes(range(16))
MESSAGE = pb.AgentToServer(instance_uid=UID, sequence_num=1)


@asynccontextmanager
async def server(
    max_connections: int = 10, buffer_bytes: int = 1 << 20
) -> AsyncIterator[tuple[Echo, GrpcAgents, NodeMetrics]]:
    agents, metrics = Echo(), NodeMetrics("local")
    settings = StreamSettings(8 << 20, buffer_bytes, 30)
    running = GrpcAgents(
        agents,
        settings,
        places=Places(max_connections, 10_000),
        proxies=TrustedProxies(),
        authenticator=Authenticator(None, clock=SystemClock(), metrics=metrics),
        retry_after_s=30,
        metrics=metrics,
        clock=SystemClock(),
    )
    await running.start("127.0.0.1:0", None)
    try:
        yield agents, running, metrics
    finally:
        await running.stop()


def test_service_name() -> None:
    assert SERVICE == "relay.v1.AgentStream"


async def test_messages_are_answered_and_pushes_arrive() -> None:
    async with server() as (agents, running, metrics):
        pipe = GrpcPipe(running.port)
        assert (await pipe.exchange(MESSAGE)).instance_uid == UID
        (connection,) = agents.connections
        connection.send(pb.ServerToAgent(instance_uid=UID, flags=1).SerializeToString())
        assert (await pipe.pushed()).flags == 1
        await eventually(lambda: agents.resumed_count)
        await eventually(lambda: (metrics.messages_received, metrics.messages_sent) == (1, 2))
        await pipe.call.done_writing()
        await eventually(lambda: metrics.closed["agent_closed"] == 1)
        assert await pipe.call.code() == grpc.StatusCode.OK
        await pipe.close()


async def test_bad_messages_are_answered_then_the_stream_ends() -> None:
    async with server() as (agents, running, metrics):
        agents.error = Malformed("no")
        pipe = GrpcPipe(running.port)
        for _ in range(3):
            answer = await pipe.exchange(MESSAGE)
            assert answer.error_response.type == pb.ServerErrorResponseType_BadRequest
        assert await pipe.call.code() == grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: metrics.closed["bad_messages"] == 1)
        await pipe.close()


async def test_streams_are_refused_beyond_the_limit_and_while_draining() -> None:
    async with server(max_connections=1) as (_, running, metrics):
        pipe = GrpcPipe(running.port)
        await pipe.exchange(MESSAGE)
        other = GrpcPipe(running.port)
        assert await other.call.code() == grpc.StatusCode.UNAVAILABLE
        assert ("retry-after", "30") in [tuple(item) for item in await other.call.trailing_metadata()]
        await pipe.close()
        await eventually(lambda: not running.open)
        assert sum(metrics.closed.values()) == 1
        running.draining = True
        third = GrpcPipe(running.port)
        assert await third.call.code() == grpc.StatusCode.UNAVAILABLE
        await other.close()
        await third.close()


async def test_closing_has_a_status() -> None:
    async with server() as (agents, running, metrics):
        pipe = GrpcPipe(running.port)
        await pipe.exchange(MESSAGE)
        agents.connections[0].close(CloseReason.DRAINING)
        assert not agents.connections[0].writable
        assert await pipe.call.code() == grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: metrics.closed["draining"] == 1)
        await pipe.close()


async def test_unread_stream_is_closed() -> None:
    async with server() as (agents, running, metrics):
        pipe = GrpcPipe(running.port)
        await pipe.exchange(MESSAGE)
        big = pb.ServerToAgent(instance_uid=bytes(900_000)).SerializeToString()
        (connection,) = agents.connections
        for _ in range(50):
            connection.send(big)
        await eventually(lambda: metrics.closed["slow_agent"] == 1)
        await pipe.close()


async def test_stalled_stream_is_detected() -> None:
    async with server(buffer_bytes=1 << 30) as (agents, running, metrics):
        pipe = GrpcPipe(running.port)
        await pipe.exchange(MESSAGE)
        (connection,) = agents.connections
        connection.probe(SystemClock().monotonic() + 1000, 1, 1)
        assert connection.writable, "nothing waits, so nothing stalls"
        big = pb.ServerToAgent(instance_uid=bytes(900_000)).SerializeToString()
        for _ in range(50):
            connection.send(big)
        await eventually(lambda: running.open and next(iter(running.open)).blocked_since)
        connection.probe(SystemClock().monotonic() + 31, 1, 1)
        await eventually(lambda: metrics.closed["slow_agent"] == 1)
        await pipe.close()


async def test_oversized_message_ends_the_stream() -> None:
    async with server() as (_, running, _metrics):
        pipe = GrpcPipe(running.port)
        await pipe.call.write(pb.AgentToServer(instance_uid=UID, custom_message=pb.CustomMessage(data=bytes(9 << 20))))
        assert await pipe.call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await pipe.close()


async def test_port_in_use_is_an_error() -> None:
    async with server() as (_, running, _metrics):
        clock, metrics = SystemClock(), NodeMetrics("x")
        second = GrpcAgents(
            Echo(),
            StreamSettings(1, 1, 1),
            places=Places(1, 10_000),
            proxies=TrustedProxies(),
            authenticator=Authenticator(None, clock=clock, metrics=metrics),
            retry_after_s=1,
            metrics=metrics,
            clock=clock,
        )
        with pytest.raises(OSError, match="cannot be opened"):
            await second.start(f"127.0.0.1:{running.port}", None)
        await second.stop()

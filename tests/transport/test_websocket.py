"""Our use of picows, and everything that a peer can do wrong on a WebSocket."""

import asyncio
import socket as sockets

import pytest
from picows import version

from relay.errors import Malformed, TooLarge
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import CloseReason
from tests.conftest import eventually
from tests.transport.stand import Stand, stand
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawSocket, frame

UID = bytes(range(16))
MESSAGE = b"\0" + pb.AgentToServer(instance_uid=UID, sequence_num=1).SerializeToString()


def test_picows_version_is_the_reviewed_one() -> None:
    assert version.__version__ == "2.3.1"


async def test_messages_are_answered_in_order_in_any_chunking() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        three = frame(MESSAGE) * 3
        socket.write(three)
        for _ in range(3):
            assert (await socket.message()).instance_uid == UID
        for i in range(len(three)):
            socket.write(three[i : i + 1])
        for _ in range(3):
            assert (await socket.message()).instance_uid == UID
        assert it.metrics.messages_received == it.metrics.messages_sent == 6
        assert it.metrics.websocket_connections == 1
        await socket.close()
        await eventually(lambda: it.agents.gone)
        assert it.metrics.closed["lost"] == 1


async def test_fragmented_message_is_reassembled() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(MESSAGE[:5], fin=False) + frame(b"hi", PING) + frame(MESSAGE[5:9], CONTINUATION, fin=False))
        assert await socket.read() == (PONG, b"hi")
        assert it.budget.used == 9
        socket.write(frame(MESSAGE[9:], CONTINUATION))
        assert (await socket.message()).instance_uid == UID
        assert it.budget.used == 0
        await socket.close()


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (frame(b"text", TEXT), 1003, "text_frame"),
        (frame(b"\0\0", 0x8), 1002, "bad_frame"),
        (frame(MESSAGE, masked=False), 1002, "bad_frame"),
        (frame(b"", declare=2 << 20), 1009, "too_large"),
        (frame(MESSAGE[:2], fin=False) + frame(MESSAGE, BINARY), 1002, "bad_frame"),
        (frame(b"x", CONTINUATION), 1002, "bad_frame"),
        (bytes([0xC2]) + frame(MESSAGE)[1:], 1002, "bad_frame"),
        (bytes([0xA2]) + frame(MESSAGE)[1:], 1002, "bad_frame"),
        (bytes([0xC9]) + frame(b"", PING)[1:], 1002, "bad_frame"),
        (bytes([0xD8]) + frame(b"", CLOSE)[1:], 1002, "bad_frame"),
        (frame(b"\x03\xe8", CLOSE) * 2, 1000, "peer_1000"),
        (frame(b"\x0f\xa0", CLOSE), 4000, "peer_4000"),
        (frame(b"x" * 900_000, fin=False) + frame(b"x" * 900_000, CONTINUATION), 1009, "too_large"),
    ],
)
async def test_forbidden_frames_close_with_their_code(data: bytes, code: int, reason: str) -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(data)
        assert await socket.close_code() == code
        await eventually(lambda: it.metrics.closed[reason] == 1)
        assert it.budget.used == 0
        await socket.close()


@pytest.mark.parametrize("message", [b"\x01data", b"", b"\x80\x80", b"\x0a\x10legacy"])
async def test_nonzero_message_header_is_a_bad_request(message: bytes) -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(message))
        assert (await socket.message()).error_response.type == pb.ServerErrorResponseType_BadRequest
        socket.write(frame(MESSAGE))
        assert (await socket.message()).instance_uid == UID
        await socket.close()


async def test_unfinished_messages_share_one_budget() -> None:
    async with stand(budget_bytes=1000) as it:
        first, second = await RawSocket.open(it.port), await RawSocket.open(it.port)
        first.write(frame(b"x" * 800, fin=False))
        await eventually(lambda: it.budget.used == 800)
        second.write(frame(b"x" * 800, fin=False))
        assert await second.close_code() == 1013
        await first.close()
        await eventually(lambda: it.budget.used == 0)
        await second.close()


async def test_repeated_garbage_closes_the_connection() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(b"\0" + b"\xff" * 10))
        answer = await socket.message()
        assert answer.error_response.type == pb.ServerErrorResponseType_BadRequest
        socket.write(frame(MESSAGE))
        assert (await socket.message()).instance_uid == UID, "one bad message does not end the conversation"
        socket.write(frame(b"\0") * 2)
        await socket.message()
        await socket.message()
        assert await socket.close_code() == 1008
        await eventually(lambda: it.metrics.closed["bad_messages"] == 1)
        assert it.metrics.bad_messages["bad_request"] == 3
        await socket.close()


async def test_errors_from_the_handler_are_sent() -> None:
    async with stand() as it:
        it.agents.error = Malformed("not like this")
        socket = await RawSocket.open(it.port)
        socket.write(frame(MESSAGE))
        answer = await socket.message()
        assert (answer.instance_uid, answer.error_response.error_message) == (UID, "not like this")
        it.agents.error = TooLarge("too much")
        socket.write(frame(MESSAGE))
        assert await socket.close_code() == 1009
        await socket.close()


async def test_close_is_answered_with_its_code() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(b"\x03\xe8", 0x8))
        assert await socket.close_code() == 1000
        await eventually(lambda: it.metrics.closed["peer_1000"] == 1)
        await socket.close()


async def slow_reader(it: Stand) -> RawSocket:
    """An unread connection with a tiny receive buffer."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", it.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    socket = RawSocket(reader, writer)
    from tests.wire import UPGRADE

    socket.write(UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return socket


async def test_agent_that_stops_reading_is_closed_and_delays_no_other() -> None:
    async with stand(max_send_buffer_bytes=1 << 20, max_message_bytes=8 << 20) as it:
        slow = await slow_reader(it)
        it.agents.extra = b"\x1a\xff\xff\x3f" + bytes((1 << 20) - 1)
        for _ in range(20):
            slow.write(frame(MESSAGE))
        await eventually(lambda: it.metrics.closed["slow_agent"] == 1)
        it.agents.extra = b""
        quick = await RawSocket.open(it.port)
        quick.write(frame(MESSAGE))
        assert (await quick.message()).instance_uid == UID
        await quick.close()
        await slow.close()


async def test_agent_with_a_full_socket_is_closed_in_time() -> None:
    async with stand(max_send_buffer_bytes=64 << 20, max_message_bytes=8 << 20, send_stall_s=0.3) as it:
        slow = await slow_reader(it)
        it.agents.extra = b"\x1a\xff\xff\x3f" + bytes((1 << 20) - 1)
        for _ in range(10):
            slow.write(frame(MESSAGE))
        await eventually(lambda: it.metrics.closed["slow_agent"] == 1)
        await slow.close()


async def test_pushes_pause_while_the_socket_is_full() -> None:
    async with stand(max_send_buffer_bytes=64 << 20, max_message_bytes=8 << 20) as it:
        slow = await slow_reader(it)
        it.agents.extra = b"\x1a\xff\xff\x3f" + bytes((1 << 20) - 1)
        for _ in range(8):
            slow.write(frame(MESSAGE))
        await eventually(lambda: it.agents.connections and not it.agents.connections[0].writable)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(8):
            await slow.read()
        await eventually(lambda: it.agents.resumed_count)
        assert it.agents.connections[0].writable
        await slow.close()


async def test_silent_connections_are_pinged_then_closed() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(MESSAGE))
        await socket.message()
        (connection,) = it.agents.connections
        now = asyncio.get_running_loop().time()
        connection.probe(now, 25, 100)
        connection.probe(now + 30, 25, 100)
        assert await socket.read() == (PING, b"")
        socket.write(frame(b"", PONG))
        await asyncio.sleep(0.1)
        connection.probe(now + 30, 25, 100)
        assert await socket.read() == (PING, b"")
        connection.probe(now + 150, 25, 100)
        assert await socket.close_code() == 1000
        await eventually(lambda: it.metrics.closed["idle"] == 1)
        await socket.close()


async def test_close_is_sent_once_and_enforced() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(MESSAGE))
        await socket.message()
        (connection,) = it.agents.connections
        connection.close(CloseReason.DRAINING)
        connection.close(CloseReason.IDLE)
        assert not connection.writable
        connection.send(b"")
        assert await socket.close_code() == 1001
        socket.write(frame(MESSAGE))
        await eventually(lambda: it.metrics.closed["draining"] == 1)
        assert len(it.agents.received) == 1
        await socket.close()


async def test_pongs_to_an_unread_peer_are_not_queued() -> None:
    async with stand(send_stall_s=0.5) as it:
        socket = await RawSocket.open(it.port)
        (ours,) = it.websockets.open
        assert ours._transport is not None
        underlying = ours._transport.underlying_transport
        most = 0
        for _ in range(200):
            socket.write(frame(b"p" * 125, PING) * 2000)
            await asyncio.sleep(0.005)
            most = max(most, underlying.get_write_buffer_size())
            if it.metrics.closed["slow_agent"]:
                break
        await eventually(lambda: it.metrics.closed["slow_agent"] == 1)
        assert most < 1 << 20
        await socket.close()

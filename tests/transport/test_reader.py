"""Memory for unfinished frames in picows is counted, bounded, and released."""

import asyncio
import ssl
from pathlib import Path

import pytest

from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.testing.certificates import Authority
from tests.conftest import eventually
from tests.transport.stand import stand
from tests.wire import CONTINUATION, PONG, RawSocket, frame

UID = bytes(range(16))
MESSAGE = b"\0" + pb.AgentToServer(instance_uid=UID, sequence_num=1).SerializeToString()
_STATUSES = pb.PackageStatuses(error_message="x" * 500_000)
LARGE = b"\0" + pb.AgentToServer(instance_uid=UID, package_statuses=_STATUSES).SerializeToString()


async def test_unfinished_frame_counts_until_complete() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        whole = frame(LARGE)
        socket.write(whole[:300_000])
        await eventually(lambda: 150_000 < it.budget.used < 700_000)
        assert it.fall_quiet() is False, "half a message is there"
        socket.write(whole[300_000:])
        assert (await socket.message()).instance_uid == UID
        await eventually(it.fall_quiet)
        await socket.close()


async def test_buffer_is_released_at_once_when_memory_is_short() -> None:
    statuses = pb.PackageStatuses(error_message="x" * 400_000)
    message = b"\0" + pb.AgentToServer(instance_uid=UID, package_statuses=statuses).SerializeToString()
    async with stand(budget_bytes=700_000) as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(message))
        assert (await socket.message()).instance_uid == UID
        await eventually(lambda: it.budget.used == 0)
        socket.write(frame(MESSAGE))
        assert (await socket.message()).instance_uid == UID
        await socket.close()


async def test_unfinished_frame_of_a_lost_connection_is_released() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        socket.write(frame(LARGE)[:400_000])
        await eventually(lambda: it.budget.used > 200_000)
        await socket.close()
        await eventually(lambda: it.budget.used == 0 and len(it.agents.gone) == 1)


async def test_newest_frame_is_refused_beyond_the_budget() -> None:
    async with stand(budget_bytes=600_000) as it:
        first, second = await RawSocket.open(it.port), await RawSocket.open(it.port)
        first.write(frame(LARGE)[:-1])
        await eventually(lambda: it.budget.used > 450_000)
        second.write(frame(LARGE)[:-1])
        assert await second.close_code() == 1013
        await eventually(lambda: it.metrics.closed["over_budget"] == 1)
        assert it.budget.used <= 600_000
        first.write(frame(LARGE)[-1:])
        assert (await first.message()).instance_uid == UID, "the older one goes on"
        await eventually(it.fall_quiet)
        await first.close()
        await second.close()


@pytest.mark.parametrize("secure", [False, True])
async def test_connection_works_after_its_buffer_was_released(secure: bool, tmp_path: Path) -> None:
    server = client = None
    if secure:
        authority = Authority(tmp_path)
        pair = authority.issue("node")
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(pair.cert_file, pair.key_file)
        client = ssl.create_default_context(cafile=authority.ca_file)
    async with stand(tls=server) as it:
        socket = await RawSocket.open(it.port, ssl=client)
        for _ in range(3):
            socket.write(frame(LARGE))
            assert (await socket.message()).instance_uid == UID
            await eventually(it.fall_quiet)
            socket.write(frame(MESSAGE) + frame(MESSAGE[:4], fin=False) + frame(b"hi", 0x9))
            assert (await socket.message()).instance_uid == UID
            assert await socket.read() == (PONG, b"hi")
            socket.write(frame(MESSAGE[4:], CONTINUATION))
            assert (await socket.message()).instance_uid == UID
        assert it.metrics.websocket_connections == 1
        assert not it.agents.gone
        socket.write(frame(b"text", 0x1))
        assert await socket.close_code() == 1003
        await socket.close()
        await eventually(lambda: it.metrics.closed["text_frame"] == 1)
        assert len(it.agents.gone) == 1


async def test_data_right_after_a_large_message_is_kept() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        data = frame(LARGE) + frame(MESSAGE)[:3]
        socket.write(data)
        assert (await socket.message()).instance_uid == UID
        socket.write(frame(MESSAGE)[3:] + frame(LARGE) + frame(MESSAGE) * 200)
        for _ in range(202):
            assert (await socket.message()).instance_uid == UID
        await eventually(it.fall_quiet)
        await socket.close()


@pytest.mark.parametrize("size", [3_840 << power for power in range(1, 7)])
async def test_partial_frame_that_fills_the_buffer_is_kept(size: int) -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port)
        whole = frame(LARGE)
        socket.write(whole[:size])
        await eventually(lambda: it.budget.used >= size // 2)
        await asyncio.sleep(0.05)
        it.fall_quiet()
        socket.write(whole[size:])
        assert (await socket.message()).instance_uid == UID
        await eventually(it.fall_quiet)
        await socket.close()

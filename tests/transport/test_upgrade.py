"""Upgrades on kept-alive connections: proxies reuse their connections to us."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import eventually
from tests.transport.stand import stand
from tests.wire import UPGRADE, RawSocket, frame, hang_up

UID = b"u" * 16
MESSAGE = b"\0\x0a\x10" + UID
POLL = (
    b"POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 18\r\n\r\n"
    + MESSAGE[1:]
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def upgrade(port: int, extra: str = "") -> bytes:
    return UPGRADE.format(path="/v1/opamp", port=port, extra=extra).encode()


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if length:
            await reader.readexactly(int(length[0].split(b":")[1]))
    return head


@pytest.mark.parametrize("before", [[HEALTH], [POLL], [HEALTH, POLL, HEALTH]])
@pytest.mark.parametrize("pipelined", [False, True])
async def test_any_request_on_a_kept_connection_may_be_the_upgrade(before: list[bytes], pipelined: bool) -> None:
    async with stand() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        if pipelined:
            writer.write(b"".join(before) + upgrade(it.port) + frame(MESSAGE))
            for _ in before:
                assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        else:
            for request in before:
                writer.write(request)
                assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            writer.write(upgrade(it.port))
        head = await answer(reader)
        assert head.startswith(b"HTTP/1.1 101")
        assert b"Server: opamp-relay\r\n" in head
        socket = RawSocket(reader, writer)
        if pipelined:
            assert (await socket.message()).instance_uid == UID
        for _ in range(3):
            socket.write(frame(MESSAGE))
            assert (await socket.message()).instance_uid == UID
        assert it.door.places.used == 1
        assert not it.door.http.connections, "aiohttp has let go of it"
        await socket.close()
        await eventually(lambda: it.door.places.used == 0)


async def test_refused_upgrade_is_answered() -> None:
    async with stand() as it:
        for extra, status in (("Origin: http://evil\r\n", b"403"), ("", b"503")):
            it.door.upgrades.accepting = status != b"503"
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(HEALTH)
            await answer(reader)
            writer.write(upgrade(it.port, extra))
            assert (await answer(reader)).startswith(b"HTTP/1.1 " + status)
            await hang_up(writer)


async def test_head_limit_applies_on_kept_connections() -> None:
    async with stand(max_header_bytes=16 << 10) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(HEALTH)
        await answer(reader)
        writer.write(HEALTH.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 12_000 + b"\r\n\r\n"))
        head = await answer(reader)
        assert head.startswith(b"HTTP/1.1 200")
        assert b"Server: opamp-relay\r\n" in head
        await hang_up(writer)

import asyncio
import ssl
from pathlib import Path

import pytest

from relay.testing.certificates import Authority
from relay.transport.door import parse_head
from tests.conftest import eventually
from tests.transport.stand import stand
from tests.wire import UPGRADE, RawSocket, hang_up, is_gone


async def talk(port: int, data: bytes, *, piecewise: bool = False, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes and give all that comes until the other side closes or stops."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        for piece in [data[i : i + 1] for i in range(len(data))] if piecewise else [data]:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read(1000)
    finally:
        await hang_up(writer)


def test_heads_are_parsed_strictly() -> None:
    head = parse_head(b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Y:  z ")
    assert head is not None
    assert (head.method, head.path, head.headers) == ("GET", "/a", {"host": "h", "x-y": "z"})
    for bad in (b"", b"GET /", b"GET / HTTP/2", b"GET http://x HTTP/1.1", b"GET / HTTP/1.1\r\nno colon",
                b"GET / HTTP/1.1\r\n folded: x", b"GET / HTTP/1.1\r\n: x"):  # fmt: skip
        assert parse_head(bad) is None, bad


async def test_a_head_may_come_byte_by_byte() -> None:
    async with stand() as it:
        answer = await talk(it.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", piecewise=True)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        upgrade = UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode()
        assert (await talk(it.port, upgrade, piecewise=True)).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"\x16\x03\x01 garbage\r\n\r\n", 400, "bad_request_line"),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 3000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 3000, 431, "header_too_large"),
        (UPGRADE.format(path="/other", port=1, extra="").encode(), 404, "path"),
        (UPGRADE.format(path="/v1/opamp", port=1, extra="Origin: http://evil\r\n").encode(), 403, "origin"),
    ],
)
async def test_refusals_have_a_status_and_a_counter(request_: bytes, status: int, reason: str) -> None:
    async with stand() as it:
        answer = await talk(it.port, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert it.metrics.refused[reason] == 1


async def test_a_page_of_our_own_may_connect() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port, extra=f"Origin: http://127.0.0.1:{it.port}\r\n")
        await socket.close()


async def test_a_slow_head_is_cut_off() -> None:
    async with stand(header_timeout_s=0.2) as it:
        assert (await talk(it.port, b"GET /health HTTP/1.1\r\n")).startswith(b"HTTP/1.1 408")
        assert it.metrics.refused["header_timeout"] == 1


async def test_past_the_cap_newcomers_are_told_when_to_come_back() -> None:
    async with stand(max_connections=2) as it:
        held = [await RawSocket.open(it.port) for _ in range(2)]
        refused = await talk(it.port, UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode())
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 7\r\n" in refused
        assert it.metrics.refused["connections"] == 1
        assert (await talk(it.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await held[0].close()
        await eventually(lambda: it.door.connections <= 1)
        await (await RawSocket.open(it.port)).close()
        await held[1].close()


async def test_far_past_the_cap_connections_are_dropped() -> None:
    async with stand(max_connections=1) as it:
        held = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(2)]
        await eventually(lambda: len(it.door.waiting) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        assert await is_gone(reader)
        for _, other in [*held, (reader, writer)]:
            await hang_up(other)


async def test_a_draining_door_sends_agents_away_and_answers_probes() -> None:
    async with stand() as it:
        it.door.draining = True
        upgrade = UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode()
        assert b"503" in await talk(it.port, upgrade)
        assert b"200" in await talk(it.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_tls_ports_take_tls_and_plain_probes(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("node")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.cert_file, pair.key_file)
    client = ssl.create_default_context(cafile=str(authority.ca_file))
    async with stand(tls=server, header_timeout_s=1) as it:
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await talk(it.port, health, tls=client)).startswith(b"HTTP/1.1 200")
        assert (await talk(it.port, health)).startswith(b"HTTP/1.1 200")
        assert (await talk(it.port, b"POST /v1/opamp HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert it.metrics.refused["plain_http_on_tls"] == 1
        smuggled = health + b"POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(smuggled)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 404" in await reader.readuntil(b"HTTP/1.1 404"), "only probes are answered without TLS"
        await hang_up(writer)
        await talk(it.port, b"\x16\x03\x01\x00\x05nonsense")
        await eventually(lambda: it.metrics.refused["tls"] == 1)
        socket = await RawSocket.open(it.port, ssl=client)
        await socket.close()


async def test_closing_ends_what_stands_in_the_door() -> None:
    async with stand() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        await eventually(lambda: it.door.waiting)
        await it.door.close()
        assert await is_gone(reader)
        await hang_up(writer)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", it.port)

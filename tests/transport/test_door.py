import asyncio
import contextlib
import socket as socket_module
import ssl
import time
from pathlib import Path

import pytest

from relay.testing.certificates import Authority
from relay.transport.door import _Sniffer
from relay.transport.peers import V2
from tests.conftest import eventually
from tests.transport.stand import stand
from tests.wire import UPGRADE, RawSocket, frame, hang_up, is_gone

PROXIED = {
    1: b"PROXY TCP4 203.0.113.7 10.0.0.1 5555 4320\r\n",
    2: V2 + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 7, 10, 0, 0, 1]) + (5555).to_bytes(2, "big") + b"\x10\xe0",
}
MESSAGE = b"\0\x0a\x10" + b"u" * 16


async def talk(port: int, data: bytes, *, piecewise: bool = False, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes; return everything received until the other side closes or stops."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        for piece in [data[i : i + 1] for i in range(len(data))] if piecewise else [data]:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read(1000)
    finally:
        await hang_up(writer)


async def test_head_may_arrive_byte_by_byte() -> None:
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
        (b"\r\n" * 200_000, 431, "header_too_large"),
        (UPGRADE.format(path="/other", port=1, extra="").encode(), 404, "path"),
        (UPGRADE.format(path="/v1/opamp", port=1, extra="Origin: http://evil\r\n").encode(), 403, "origin"),
    ],
)
async def test_refusals_have_a_status_and_a_counter(request_: bytes, status: int, reason: str) -> None:
    async with stand() as it:
        answer = await talk(it.port, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert it.metrics.refused[reason] == 1


async def test_same_origin_page_may_connect() -> None:
    async with stand() as it:
        socket = await RawSocket.open(it.port, extra=f"Origin: http://127.0.0.1:{it.port}\r\n")
        await socket.close()


async def test_slow_head_is_cut_off() -> None:
    async with stand(header_timeout_s=0.2) as it:
        assert (await talk(it.port, b"GET /health HTTP/1.1\r\n")).startswith(b"HTTP/1.1 408")
        assert it.metrics.refused["header_timeout"] == 1


async def test_connections_beyond_the_limit_get_retry_after() -> None:
    async with stand(max_connections=2) as it:
        held = [await RawSocket.open(it.port) for _ in range(2)]
        refused = await talk(it.port, UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode())
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 7\r\n" in refused
        assert it.metrics.refused["connections"] == 1
        assert (await talk(it.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await held[0].close()
        await eventually(lambda: it.door.places.used <= 1)
        await (await RawSocket.open(it.port)).close()
        await held[1].close()


async def test_idle_sockets_do_not_block_others() -> None:
    async with stand(max_connections=20) as it:
        held = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(8)]
        await eventually(lambda: len(it.door.waiting) == 8)
        await asyncio.sleep(3)
        newcomer = await RawSocket.open(it.port)
        assert await is_gone(held[0][0]), "the one that has stood there longest"
        assert it.metrics.refused["heads"] == 1
        held += [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(30)]
        await eventually(lambda: len(it.door.waiting) == 30)
        for _, writer in held:
            await hang_up(writer)
        await newcomer.close()


async def test_many_connections_are_accepted_with_few_descriptors() -> None:
    async with stand(max_connections=2000, descriptors=428) as it:
        crowd = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", it.port) for _ in range(250)))
        await eventually(lambda: len(it.door.waiting) + it.metrics.refused["heads"] == 250)
        assert it.metrics.refused["heads"] == 0
        for _, writer in crowd:
            await hang_up(writer)


async def test_busy_node_closes_no_unread_connection() -> None:
    async with stand(max_connections=40) as it:
        first = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(8)]
        await eventually(lambda: len(it.door.waiting) == 8)
        time.sleep(2.5)  # noqa: ASYNC251 - the loop stands still, as it does while thousands of others are answered
        second = await asyncio.open_connection("127.0.0.1", it.port)
        await eventually(lambda: len(it.door.waiting) == 9)
        assert it.metrics.refused["heads"] == 0
        for _, writer in [*first, second]:
            await hang_up(writer)


@pytest.mark.parametrize("version", [1, 2])
async def test_proxy_header_of_a_trusted_proxy_is_accepted(version: int) -> None:
    async with stand(trusted=("127.0.0.0/8",)) as it:
        for request, opened in (
            (UPGRADE.format(path="/v1/opamp", port=it.port, extra=""), b"HTTP/1.1 101"),
            ("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
        ):
            data = PROXIED[version] + request.encode()
            assert (await talk(it.port, data, piecewise=True)).startswith(opened)
            assert (await talk(it.port, request.encode())).startswith(opened), "it may also say nothing"
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        upgrade = UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode()
        writer.write(PROXIED[version] + upgrade + frame(MESSAGE))
        await reader.readuntil(b"\r\n\r\n")
        await eventually(lambda: it.agents.remotes == ["203.0.113.7:5555"])
        await hang_up(writer)


async def test_proxy_header_from_elsewhere_is_refused() -> None:
    async with stand() as it:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for header in PROXIED.values():
            assert (await talk(it.port, header + request)).startswith(b"HTTP/1.1 400")
        assert it.metrics.refused["proxy_header"] == 2
        assert b"400" in await talk(it.port, b"PROXY " + b"x" * 200)


async def test_http_agent_has_the_address_from_its_proxy() -> None:
    async with stand(trusted=("127.0.0.1",)) as it:
        body = MESSAGE[1:]
        head = (
            f"POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            f"X-Forwarded-For: 198.51.100.9, 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        assert (await talk(it.port, PROXIED[1] + head.replace(b"X-Forwarded-For", b"X-Other") + body)).startswith(
            b"HTTP/1.1 200"
        )
        assert (await talk(it.port, head + body)).startswith(b"HTTP/1.1 200")
        assert it.agents.remotes == ["203.0.113.7:5555", "198.51.100.9"]


async def test_draining_door_refuses_agents_but_answers_probes() -> None:
    async with stand() as it:
        it.door.draining = True
        upgrade = UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode()
        assert b"503" in await talk(it.port, upgrade)
        assert b"200" in await talk(it.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_tls_port_accepts_tls_and_plain_probes(tmp_path: Path) -> None:
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
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(PROXIED[1] + health)
        assert await is_gone(reader), "nobody is trusted"
        with contextlib.suppress(ConnectionError):
            await hang_up(writer)
    async with stand(tls=server, trusted=("127.0.0.1",)) as it:
        for header in (b"", *PROXIED.values()):
            connection = await asyncio.to_thread(_tls_behind, it.port, header, client)
            connection.sendall(UPGRADE.format(path="/v1/opamp", port=it.port, extra="").encode() + frame(MESSAGE))
            answer = await asyncio.to_thread(connection.recv, 1000)
            assert answer.startswith(b"HTTP/1.1 101")
            await eventually(lambda: len(it.agents.remotes))
            assert it.agents.remotes.pop().startswith("203.0.113.7:5555" if header else "127.0.0.1:")
            connection.close()
        assert (await talk(it.port, PROXIED[2] + health)).startswith(b"HTTP/1.1 200")


def _tls_behind(port: int, header: bytes, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket_module.create_connection(("127.0.0.1", port), timeout=10)
    plain.sendall(header)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


async def test_close_ends_waiting_connections() -> None:
    async with stand() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        await eventually(lambda: it.door.waiting)
        await it.door.close()
        assert await is_gone(reader)
        await hang_up(writer)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", it.port)


async def test_connection_aborted_before_sniffing_is_closed() -> None:
    async with stand() as it:
        ours, theirs = socket_module.socketpair()
        theirs.setblocking(False)
        sniffer = _Sniffer(it.door, theirs, lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        sniffer.start(it.door._tasks)
        sniffer.abort()
        await eventually(lambda: theirs.fileno() < 0)
        assert sniffer not in it.door.waiting
        ours.close()

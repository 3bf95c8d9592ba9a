"""The door: one asyncio protocol on each agents' port that reads the request head and hands the connection on.

Both ports take WebSocket and plain HTTP. The head is bounded in bytes and time, caps are applied, and what is refused is
answered here; then the live transport becomes picows' or aiohttp's. On a TLS port the first byte is looked at without
taking it: a TLS record begins with 0x16, anything else is plain HTTP and may only ask for health (probes do).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Any, cast

from relay.aio.tasks import Tasks
from relay.observe.metrics import NodeMetrics
from relay.transport.downloads import PATH as DOWNLOADS
from relay.transport.downloads import Downloads
from relay.transport.http import PATH
from relay.transport.ports import base_url, peer_name
from relay.transport.websocket import WebSocketFactory

_END = b"\r\n\r\n"
_REFUSAL_LINGER_S = 0.5
_RESERVED = 100
_PLAIN_ON_TLS = frozenset({"/health", "/ready"})


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Bounds of a connection before it is anybody's; see `relay.settings.parts.Limits`."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Head:
    """A request head."""

    method: str
    path: str
    headers: dict[str, str]
    """Lower-case names; of a name that stands twice, the last."""
    query: str = ""


def parse_head(raw: bytes) -> Head | None:
    """Read the head of an HTTP/1.1 request; None if it is none."""
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        headers[name.lower()] = value.strip()
    path, _, query = parts[1].partition("?")
    return Head(parts[0], path, headers, query)


class Door:
    """All connections of the agents' ports, before and after they are handed on."""

    def __init__(
        self,
        settings: DoorSettings,
        websockets: WebSocketFactory,
        http: Any,
        probes: Any,
        downloads: Downloads,
        *,
        metrics: NodeMetrics,
    ) -> None:
        self.settings = settings
        self.websockets = websockets
        self.metrics = metrics
        self.http = http
        """aiohttp's Server: makes a protocol when called, and counts its connections."""
        self.probes = probes
        """Another one that answers probes alone: for plain HTTP on a TLS port."""
        self.downloads = downloads
        self.waiting: set[_Entrance] = set()
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []
        self._tasks = Tasks()

    @property
    def connections(self) -> int:
        """Open connections of all kinds."""
        return len(self.waiting) + len(self.websockets.open) + len(self.http.connections) + len(self.probes.connections)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Open one port and give its number.

        Raises:
            OSError: it cannot be bound.
        """
        loop = asyncio.get_running_loop()
        if tls is None:
            server = await loop.create_server(lambda: _Entrance(self), host, port, backlog=4096)
            self._servers.append(server)
            number: int = server.sockets[0].getsockname()[1]
            return number
        info = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = info[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        try:
            listening.bind(address)
            listening.listen(4096)
        except OSError:
            listening.close()
            raise
        self._listening.append(listening)
        loop.add_reader(listening.fileno(), self._accept, listening, tls)
        bound: int = listening.getsockname()[1]
        return bound

    def _accept(self, listening: socket.socket, tls: ssl.SSLContext) -> None:
        for _ in range(64):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # Out of descriptors: the reader would fire at once again.
                self.metrics.refused["accept"] += 1
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening.fileno())
                loop.call_later(0.1, self._accept_again, listening, tls)
                return
            connection.setblocking(False)
            self._tasks.spawn(self._sniff(connection, tls), name="tls-accept")

    def _accept_again(self, listening: socket.socket, tls: ssl.SSLContext) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening, tls)

    async def _sniff(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.settings.header_timeout_s):
                first = await _peek(loop, connection)
                if first == b"\x16":
                    if self.connections >= 2 * self.settings.max_connections:
                        raise ConnectionError("too many connections")
                    await loop.connect_accepted_socket(lambda: _Entrance(self), connection, ssl=tls)
                else:
                    await loop.connect_accepted_socket(lambda: _Entrance(self, only=_PLAIN_ON_TLS), connection)
        except (OSError, TimeoutError, asyncio.CancelledError):
            self.metrics.refused["tls"] += 1
            connection.close()

    def stop_listening(self) -> None:
        """Accept no more. What is open stays."""
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        for listening in self._listening:
            loop.remove_reader(listening.fileno())
            listening.close()
        self._servers, self._listening = [], []

    async def close(self) -> None:
        """End what still stands in the door."""
        self.stop_listening()
        for entrance in list(self.waiting):
            entrance.abort()
        await self._tasks.close()


async def _peek(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    ready: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection.fileno(), readable)
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())
    return connection.recv(1, socket.MSG_PEEK)


class _Entrance(asyncio.Protocol):
    """One connection until its request head is whole."""

    __slots__ = ("_door", "_only", "_read", "_timer", "_transport")

    def __init__(self, door: Door, only: frozenset[str] | None = None) -> None:
        self._door = door
        self._only = only
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        door = self._door
        if door.connections >= 2 * door.settings.max_connections:
            # Not even a refusal can be written to everybody.
            door.metrics.refused["connections"] += 1
            self._transport.abort()
            return
        door.waiting.add(self)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(door.settings.header_timeout_s, self._refuse, 408, "header_timeout")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def abort(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._door.waiting.discard(self)

    def data_received(self, data: bytes) -> None:
        if self not in self._door.waiting:
            return  # refused; the rest is read and dropped so that the answer is not lost to a reset
        self._read += data
        end = self._read.find(_END)
        if end < 0:
            if len(self._read) > self._door.settings.max_header_bytes:
                self._refuse(431, "header_too_large")
            return
        if end > self._door.settings.max_header_bytes:
            self._refuse(431, "header_too_large")
            return
        head = parse_head(self._read[:end])
        if head is None:
            self._refuse(400, "bad_request_line")
            return
        self._admit(head)

    def _admit(self, head: Head) -> None:
        door = self._door
        if self._only is not None and head.path not in self._only:
            self._refuse(400, "plain_http_on_tls")
            return
        # Probes, metrics and people get a few connections of their own, or nobody could look at a full node.
        room = door.settings.max_connections + (0 if head.path == PATH else _RESERVED)
        if door.connections > room or (door.draining and head.path == PATH):
            self._refuse(503, "draining" if door.draining else "connections")
            return
        transport = self._transport
        assert transport is not None
        if head.headers.get("upgrade", "").lower() == "websocket" and head.method == "GET":
            if head.path != PATH:
                self._refuse(404, "path")
            elif _cross_site(head):
                self._refuse(403, "origin")
            else:
                self._leave()
                where = base_url(head.headers.get("host", ""), transport)
                door.websockets.take_over(transport, self._read, peer_name(transport), where)
            return
        if head.path.startswith(DOWNLOADS) and transport.get_extra_info("ssl_object") is None:
            self._leave()
            door.downloads.take_over(transport, head.method, f"{head.path}?{head.query}", head.headers)
            return
        self._leave()
        protocol = door.http() if self._only is None else door.probes()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(self._read)

    def _refuse(self, status: int, reason: str) -> None:
        door = self._door
        door.metrics.refused[reason] += 1
        self._leave()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        retry = f"Retry-After: {max(1, round(door.settings.retry_after_s))}\r\n" if status == 503 else ""
        body = f"{reason}\n"
        transport.write(
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{retry}Connection: close\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        # Closing with unread bytes would reset the connection and may lose the answer.
        with contextlib.suppress(OSError, NotImplementedError):
            if transport.can_write_eof():
                transport.write_eof()
        asyncio.get_running_loop().call_later(_REFUSAL_LINGER_S, transport.abort)


_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _cross_site(head: Head) -> bool:
    """A browser's page of another site: agents send no Origin, and a page must not pose as one."""
    origin = head.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != head.headers.get("host", "")

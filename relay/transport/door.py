"""The door: an asyncio protocol on each agent port. It reads the request head and hands the connection on.

Both ports accept WebSocket and plain HTTP. The door limits the head in bytes and time, enforces the connection limits and
answers the requests it refuses. Then picows or aiohttp takes over the live transport. On a TLS port, the door peeks at the
first byte: a TLS record begins with 0x16. Anything else is plain HTTP, which may only ask for health, as probes do. A
trusted proxy may send a PROXY header before all that.

Connections that have not sent a whole head yet have a limit of their own, so that idle ones keep nobody out. Beyond it, the
oldest is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from relay.aio.tasks import Tasks
from relay.auth.addresses import is_own_host
from relay.observe.metrics import NodeMetrics
from relay.transport.authentication import Authenticator
from relay.transport.downloads import PATH as DOWNLOADS
from relay.transport.downloads import Downloads
from relay.transport.head import Head, Refusal, full, parse_head
from relay.transport.http import PATH
from relay.transport.kept import Kept
from relay.transport.peers import V2, Address, ProxyHeader, TrustedProxies, address_of, proxy_header, scheme_of
from relay.transport.places import FOR_PROBES, Places
from relay.transport.upgrade import Proxied, Upgrades

_END = b"\r\n\r\n"
_REFUSAL_LINGER_S = 0.5
_MAX_LINGERING = 64
_MIN_WAITING = 8
_TICK_S = 0.1
_GRACE_TICKS = 20
"""A newcomer is safe for so many ticks. Ticks come late when the loop is busy, so nobody is closed before its data could
be read: when ten thousand agents connect at once, all are accepted before the first is read."""
_PEEK_BYTES = 4096
_PEEK_AGAIN_S = 0.01
TlsContexts = Callable[[], ssl.SSLContext]
"""Returns the context of the next handshake: the certificate may have changed."""
_PLAIN_ON_TLS = frozenset({"/health", "/ready"})


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Limits on a connection that has not been handed on yet; see `relay.settings.parts.Limits`."""

    max_header_bytes: int
    header_timeout_s: float
    retry_after_s: float
    own_host: bool = False
    """Whether requests must name this machine as their host."""


class Door:
    """The connections of all agent ports."""

    def __init__(
        self,
        settings: DoorSettings,
        places: Places,
        proxies: TrustedProxies,
        authenticator: Authenticator,
        upgrades: Upgrades,
        http: Any,
        probes: Any,
        downloads: Downloads,
        *,
        metrics: NodeMetrics,
    ) -> None:
        self.settings = settings
        self.places = places
        self.proxies = proxies
        self.authenticator = authenticator
        self.upgrades = upgrades
        self.metrics = metrics
        self.http = http
        """aiohttp's Server: calling it creates a protocol. It knows its connections."""
        self.probes = probes
        """A second Server that answers allowed_paths probes, for plain HTTP on a TLS port."""
        self.downloads = downloads
        self.waiting: dict[_Newcomer, int] = {}
        """Connections without a whole head yet → the tick at which they arrived, oldest first."""
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []
        self._lingering: deque[asyncio.Transport] = deque()
        self._tasks = Tasks()
        places.count(lambda: len(self.http.connections) + len(self.probes.connections))

    def enter(self, newcomer: _Newcomer) -> None:
        """Register a new connection. If too many are waiting, close the oldest."""
        self.waiting[newcomer] = self._tick
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._advance)
        soft_limit, most = max(_MIN_WAITING, self.places.limit // 8), self.places.waiting_limit
        while len(self.waiting) > min(soft_limit, most):
            oldest, entered_at = next(iter(self.waiting.items()))
            if len(self.waiting) <= most and self._tick - entered_at <= _GRACE_TICKS:
                return  # a crowd has just arrived and is about to send its heads
            self.metrics.refused["heads"] += 1
            self.waiting.pop(oldest)
            oldest.abort()

    def _advance(self) -> None:
        self._tick += 1
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._advance) if self.waiting else None

    async def listen(self, host: str, port: int, tls: TlsContexts | None) -> int:
        """Open a port and return its number.

        Raises:
            OSError: the port cannot be bound.
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

    def _accept(self, listening: socket.socket, tls: TlsContexts) -> None:
        for _ in range(64):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # Out of descriptors: the reader would fire again at once.
                self.metrics.refused["accept"] += 1
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening.fileno())
                loop.call_later(0.1, self._accept_again, listening, tls)
                return
            connection.setblocking(False)
            _Sniffer(self, connection, tls).start(self._tasks)

    def _accept_again(self, listening: socket.socket, tls: TlsContexts) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening, tls)

    def admits(self, address: Address) -> bool:
        """Whether an address may connect. A proxy speaks for others, whose addresses are known later."""
        return self.proxies.trusts(address[0]) or self.authenticator.admits(address[0])

    def stop_listening(self) -> None:
        """Accept no more connections. Open ones stay."""
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        for listening in self._listening:
            loop.remove_reader(listening.fileno())
            listening.close()
        self._servers, self._listening = [], []

    def linger(self, transport: asyncio.Transport) -> None:
        """Close a refused connection after it has had time to read why. Beyond a limit, close the oldest at once."""
        self._lingering.append(transport)
        if len(self._lingering) > _MAX_LINGERING:
            self._lingering.popleft().abort()
        asyncio.get_running_loop().call_later(_REFUSAL_LINGER_S, transport.abort)

    async def close(self) -> None:
        """Stop listening and abort all connections that are still waiting."""
        self.stop_listening()
        if self._timer is not None:
            self._timer.cancel()
        for newcomer in list(self.waiting):
            newcomer.abort()
        self.waiting.clear()
        await self._tasks.close()


class _Newcomer(Protocol):
    """A connection that has not sent a whole request head yet."""

    def abort(self) -> None:
        """Close it without an answer."""
        ...


class _Sniffer:
    """A connection on a TLS port until its first byte has arrived, after a PROXY header if there is one."""

    def __init__(self, door: Door, connection: socket.socket, tls: TlsContexts) -> None:
        self._door = door
        self._connection = connection
        self._tls = tls
        self._task: asyncio.Task[None] | None = None

    def start(self, tasks: Tasks) -> None:
        """Begin to peek."""
        self._door.enter(self)
        self._task = tasks.spawn(self._run(), name="tls-accept")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._door.waiting.pop(self, None)
        if task.cancelled():  # before it began: `_run` has not closed the socket
            self._door.metrics.refused["tls"] += 1
            self._connection.close()

    def abort(self) -> None:
        """See `_Newcomer`."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        door, connection = self._door, self._connection
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(door.settings.header_timeout_s):
                address = await self._address(loop)
                if not door.admits(address or self._connection.getpeername()):
                    raise ValueError("the address is not allowed")
                is_tls = (await self._peek(loop, 1))[:1] == b"\x16"
                paths = None if is_tls else _PLAIN_ON_TLS
                await loop.connect_accepted_socket(
                    lambda: _Entrance(door, paths, address), connection, ssl=self._tls() if is_tls else None
                )
        except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
            door.metrics.refused["tls"] += 1
            connection.close()

    async def _address(self, loop: asyncio.AbstractEventLoop) -> Address | None:
        """The source address from a PROXY header; None if there is no header or it names no source."""
        peer = self._connection.getpeername()
        size = 1
        while True:
            data = await self._peek(loop, size)
            header = proxy_header(data) if data else False
            if header is False:
                return None
            if not self._door.proxies.trusts(str(peer[0])):
                # "POST" begins like a PROXY line, so read on until it is clear. A PROXY header itself is refused.
                if header is None and size < len(V2):
                    size += 1
                    continue
                raise ValueError("PROXY header from an untrusted peer")
            if isinstance(header, ProxyHeader):
                self._connection.recv(header.length)
                return header.source
            size = len(data) + 1

    async def _peek(self, loop: asyncio.AbstractEventLoop, min_bytes: int) -> bytes:
        """Wait for at least `min_bytes` and return them unread; empty if the other end has closed."""
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._connection.fileno(), _settle, ready)
            try:
                await ready
            finally:
                loop.remove_reader(self._connection.fileno())
            data = self._connection.recv(_PEEK_BYTES, socket.MSG_PEEK)
            if len(data) >= min_bytes or not data:
                return data
            await asyncio.sleep(_PEEK_AGAIN_S)  # the bytes that are there would wake the reader at once


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class _Entrance(asyncio.Protocol):
    """A connection until its request head is complete."""

    __slots__ = ("_address", "_allowed_paths", "_blank", "_door", "_past_proxy", "_read", "_timer", "_transport")

    def __init__(self, door: Door, allowed_paths: frozenset[str] | None = None, address: Address | None = None) -> None:
        self._door = door
        self._allowed_paths = allowed_paths
        self._address = address
        """The other end's, if a PROXY header named it."""
        self._past_proxy = False
        self._read = b""
        self._blank = 0
        """Bytes of empty lines that came before the request."""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._past_proxy = transport.get_extra_info("ssl_object") is not None or self._allowed_paths is not None
        door = self._door
        door.enter(self)
        loop = asyncio.get_running_loop()
        late = Refusal(408, "header_timeout")
        self._timer = loop.call_later(door.settings.header_timeout_s, self._refuse, late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def abort(self) -> None:
        """See `_Newcomer`."""
        if self._transport is not None:
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._door.waiting.pop(self, None)

    def data_received(self, data: bytes) -> None:
        if self not in self._door.waiting:
            return  # already refused; drop the rest, because a reset would lose the answer
        self._read += data
        if not self._past_proxy and not self._take_proxy_header():
            return
        most = self._door.settings.max_header_bytes
        if self._read.startswith(b"\r\n"):  # servers should ignore empty lines here (RFC 9112, 2.2)
            before = len(self._read)
            self._read = self._read.lstrip(b"\r\n")
            self._blank += before - len(self._read)
            if self._blank > most:
                self._refuse(Refusal(431, "header_too_large"))
                return
        end = self._read.find(_END)
        if max(end, len(self._read) if end < 0 else 0) > most:
            self._refuse(Refusal(431, "header_too_large"))
            return
        if end < 0:
            return
        head = parse_head(self._read[:end])
        if head is None:
            self._refuse(Refusal(400, "bad_request_line"))
            return
        self._admit(head, self._read[end + len(_END) :])

    def _take_proxy_header(self) -> bool:
        """Take a PROXY header off the data, if there is one. Return whether the request may be parsed now."""
        assert self._transport is not None
        try:
            header = proxy_header(self._read)
        except ValueError:
            self._refuse(Refusal(400, "proxy_header"))
            return False
        if header is None:
            return False
        if isinstance(header, ProxyHeader):
            if not self._door.proxies.trusts(address_of(self._transport)[0]):
                self._refuse(Refusal(400, "proxy_header"))
                return False
            self._address = header.source
            self._read = self._read[header.length :]
        self._past_proxy = True
        return True

    def _admit(self, head: Head, rest: bytes) -> None:
        door = self._door
        if self._allowed_paths is not None and head.path not in self._allowed_paths:
            self._refuse(Refusal(400, "plain_http_on_tls"))
            return
        if door.settings.own_host and not is_own_host(head.headers.get("host", "")):
            self._refuse(Refusal(403, "host"))
            return
        # Probes, metrics and people get a few extra connections: otherwise nobody could inspect a full node.
        room = door.places.limit + (0 if head.path == PATH else FOR_PROBES)
        if door.places.used >= room or (door.draining and head.path == PATH):
            self._refuse(full("draining" if door.draining else "connections", door.settings.retry_after_s))
            return
        transport = self._transport
        assert transport is not None
        address = self._address or address_of(transport)
        if not door.admits(address):
            self._refuse(Refusal(403, "address"))
            return
        if head.is_upgrade:
            self._leave()
            refusal = door.upgrades.take(head, transport, rest, address)
            if refusal is not None and refusal.delay_s:
                asyncio.get_running_loop().call_later(refusal.delay_s, self._answer_late, refusal)
            elif refusal is not None:
                self._answer(refusal)
            return
        if head.path.startswith(DOWNLOADS) and scheme_of(transport) == "http":
            self._leave()
            door.downloads.take_over(transport, head.method, f"{head.path}?{head.query}", head.headers)
            return
        self._leave()
        settings = door.settings
        handler = door.http() if self._allowed_paths is None else door.probes()
        protocol = Kept(handler, settings.max_header_bytes, settings.header_timeout_s, self._refuse)
        transport.set_protocol(protocol)
        protocol.connection_made(transport if self._address is None else Proxied(transport, self._address))
        protocol.data_received(self._read)

    def _refuse(self, refusal: Refusal) -> None:
        self._door.metrics.refused[refusal.reason] += 1
        self._leave()
        self._answer(refusal)

    def _answer_late(self, refusal: Refusal) -> None:
        self._door.authenticator.delayed()
        self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(refusal.answer())
        # Closing with unread bytes would reset the connection, which may lose the answer.
        with contextlib.suppress(OSError, NotImplementedError):
            if transport.can_write_eof():
                transport.write_eof()
        self._door.linger(transport)

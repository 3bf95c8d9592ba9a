"""Agents over gRPC: `relay.v1.AgentStream.Connect`. Each stream is a connection; sessions are those of every transport.

Messages pass as bytes; the session parses them. The handler's coroutine writes, from a short queue of replies that the
agent has not read yet. A task beside it reads.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from relay.aio.clock import Clock
from relay.aio.grpc_services import add_standard_services
from relay.aio.tasks import beside
from relay.auth.principal import Reason
from relay.errors import AgentError, Overloaded
from relay.observe.metrics import NodeMetrics
from relay.opamp import body
from relay.opamp.session import Session
from relay.pb.relay.v1 import agents_pb2
from relay.transport.authentication import Authenticator
from relay.transport.peers import TrustedProxies
from relay.transport.places import Places
from relay.transport.ports import Agents, Caller, CloseReason, StreamSettings

_CLOSE_LINGER_S = 1.0
SERVICE = agents_pb2.DESCRIPTOR.services_by_name["AgentStream"].full_name

STATUS = {
    CloseReason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    CloseReason.RELEASED: grpc.StatusCode.UNAVAILABLE,
    CloseReason.OVER_BUDGET: grpc.StatusCode.UNAVAILABLE,
    CloseReason.BAD_MESSAGES: grpc.StatusCode.INVALID_ARGUMENT,
    CloseReason.DUPLICATE_UID: grpc.StatusCode.ALREADY_EXISTS,
    CloseReason.SLOW_AGENT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CloseReason.REPLACED: grpc.StatusCode.ABORTED,
    CloseReason.CREDENTIAL_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    CloseReason.REVOKED: grpc.StatusCode.UNAUTHENTICATED,
}
"""Why a stream was closed → its gRPC status. Everything else is INTERNAL."""
REFUSED = {Reason.ADDRESS: grpc.StatusCode.PERMISSION_DENIED, Reason.NO_POLICY: grpc.StatusCode.UNAVAILABLE}
"""Why a caller is refused → its gRPC status. Everything else is UNAUTHENTICATED."""


class AgentStream:
    """One stream. Implements `ports.Connection`."""

    transport_name = "grpc"
    header = b""

    def __init__(self, caller: Caller, settings: StreamSettings, clock: Clock) -> None:
        self.session: Session | None = None
        self.caller = caller
        self._settings = settings
        self._clock = clock
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._wake = asyncio.Event()
        self.reason: CloseReason | None = None
        self.blocked_since: float | None = None
        self.writer: asyncio.Task[None] | None = None

    @property
    def writable(self) -> bool:
        """See `ports.Connection`."""
        return not self._outgoing and self.reason is None

    def send(self, content: bytes) -> None:
        """See `ports.Connection`."""
        if self.reason is not None:
            return
        self._outgoing.append(content)
        self._outgoing_bytes += len(content)
        if len(self._outgoing) > 1 and self._outgoing_bytes > self._settings.max_send_buffer_bytes:
            self.close(CloseReason.SLOW_AGENT)
        self._wake.set()

    def close(self, reason: CloseReason) -> None:
        """See `ports.Connection`."""
        if self.reason is None:
            self.reason = reason
            self._wake.set()
            if self.writer is not None:
                # The writer may be waiting for an agent that does not read.
                linger_s = 0.0 if reason is CloseReason.SLOW_AGENT else _CLOSE_LINGER_S
                asyncio.get_running_loop().call_later(linger_s, self.writer.cancel)

    def ping(self, answered: Callable[[], None]) -> None:
        """Do nothing: HTTP/2 pings belong to gRPC. Only the agent's next message shows that it is alive."""

    def probe(self, now: float, ping_s: float, idle_s: float) -> None:
        """Close the stream if the agent does not read. HTTP/2 pings take care of idle streams."""
        if self.blocked_since is not None and now - self.blocked_since > self._settings.send_stall_s:
            self.close(CloseReason.SLOW_AGENT)

    async def replies(self) -> AsyncIterator[bytes]:
        """Yield the messages to write until the stream is closed."""
        while True:
            while self._outgoing and self.reason is not CloseReason.SLOW_AGENT:
                self.blocked_since = self._clock.monotonic()
                content = self._outgoing.popleft()
                yield content
                self._outgoing_bytes -= len(content)
                self.blocked_since = None
            if self.reason is not None:
                return
            self._wake.clear()
            await self._wake.wait()


class GrpcAgents:
    """The gRPC server for agents."""

    def __init__(
        self,
        agents: Agents,
        settings: StreamSettings,
        *,
        places: Places,
        proxies: TrustedProxies,
        authenticator: Authenticator,
        min_tls: str = "1.2",
        retry_after_s: float,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._agents = agents
        self._settings = settings
        self._places = places
        self._proxies = proxies
        self._authenticator = authenticator
        self._min_tls = min_tls
        places.count(lambda: len(self.open))
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._clock = clock
        self.open: dict[AgentStream, None] = {}
        """Open streams, oldest first."""
        self.draining = False
        self.port = 0
        limit = min(settings.max_message_bytes, 2**31 - 1)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.ping_timeout_ms", 20_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_idle_ms", 30_000),  # one without a stream counts in no limit
            ]
        )
        # Without (de)serialisers, gRPC passes bytes.
        handler: Any = grpc.stream_stream_rpc_method_handler(self._connect)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}),))
        self._health = add_standard_services(self._server, SERVICE, reflects=not authenticator.is_required)

    async def start(self, endpoint: str, credentials: grpc.ServerCredentials | None) -> None:
        """Listen.

        Raises:
            OSError: the endpoint cannot be bound.
        """
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(endpoint)
            else:
                self.port = self._server.add_secure_port(endpoint, credentials)
        except RuntimeError:
            message = f"{endpoint} cannot be opened: the address is already in use, or does not belong to this machine"
            raise OSError(message) from None
        await self._server.start()

    async def stop(self) -> None:
        """End all streams."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(0.5)

    async def _connect(self, requests: Any, context: Any) -> None:
        if self.draining or self._places.used >= self._places.limit:
            self._metrics.refused["draining" if self.draining else "connections"] += 1
            context.set_trailing_metadata((("retry-after", str(round(self._retry_after_s))),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "too many connections; try again later")
        stream = AgentStream(await self._caller(context), self._settings, self._clock)
        stream.writer = asyncio.current_task()
        self.open[stream] = None
        try:
            async with beside(self._read(stream, requests), name="agent-stream"):
                async for content in stream.replies():
                    await context.write(content)
                    self._metrics.messages_sent += 1
                    if stream.writable:
                        self._agents.resumed(stream)
            assert stream.reason is not None
            if stream.reason is not CloseReason.AGENT_CLOSED:
                await context.abort(STATUS.get(stream.reason, grpc.StatusCode.INTERNAL), stream.reason.value)
        finally:
            self.open.pop(stream, None)
            self._metrics.closed[(stream.reason or CloseReason.LOST).value] += 1
            self._agents.disconnected(stream)

    async def _caller(self, context: Any) -> Caller:
        """The other end; ends the call if it is not admitted. The gRPC port serves no downloads, so there is no base URL."""
        peer = context.peer().removeprefix("ipv4:").removeprefix("ipv6:")
        host, _, port = unquote(peer).rpartition(":")
        pairs = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
        address = (host.strip("[]"), int(port) if port.isdigit() else None)
        origin = self._proxies.peer(address, dict(pairs), scheme="http")
        version = context.auth_context().get("ssl_tls_version", (b"",))[0].decode("ascii", "replace")
        if version and version.removeprefix("TLSv") < self._min_tls:  # gRPC itself has no such setting
            self._metrics.refused["tls"] += 1
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"TLS {self._min_tls} or later is required")
        credentials = [value for key, value in pairs if key == "authorization"]
        # Two of them are none: whoever stands between may have read the other one.
        authorization = ", ".join(credentials) if credentials else None
        ip = origin.address[0]
        found = self._authenticator.authenticate(authorization, _certificate(context), ip, origin.remote)
        if isinstance(found, Reason):
            refusal = self._authenticator.refusal(found, ip)
            self._metrics.refused[refusal.reason] += 1
            await self._authenticator.wait(refusal)
            await context.abort(REFUSED.get(found, grpc.StatusCode.UNAUTHENTICATED), refusal.reason)
            raise AssertionError("abort always raises")
        return Caller(origin.remote, principal=found)

    async def _read(self, stream: AgentStream, requests: Any) -> None:
        try:
            async for content in requests:
                if stream.reason is not None:
                    return  # the agent may have moved to another connection; a late message must not bring it back
                self._metrics.messages_received += 1
                try:
                    reply = self._agents.receive(stream, stream.caller, content)
                except Overloaded as error:
                    reply = body.error_body(body.uid_of_malformed(content), error)
                except AgentError as error:
                    self._metrics.bad_messages[error.outcome.value] += 1
                    uid = body.uid_of_malformed(content)
                    stream.send(body.error_body(uid, error))
                    self._agents.misbehaved(stream, uid)
                    continue
                stream.send(reply)
            stream.close(CloseReason.AGENT_CLOSED)
        except Exception:
            stream.close(CloseReason.INTERNAL)
            raise


def _certificate(context: Any) -> bytes | None:
    """The client's certificate, DER, whose chain TLS has verified; None if there is none."""
    found = context.auth_context().get("x509_pem_cert", ())
    return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")) if found else None

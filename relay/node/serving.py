"""The ports of a node: for agents over WebSocket, HTTP and gRPC, downloads, probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from relay.aio.clock import Clock
from relay.aio.ports import explain_bind_errors
from relay.node.admin import Admin, not_found
from relay.node.credentials import Credentials
from relay.node.policy import PolicyHolder
from relay.node.readers import Readers
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.settings.parts import is_loopback, split_endpoint
from relay.settings.programs import NodeSettings
from relay.transport.authentication import Authenticator
from relay.transport.door import Door, DoorSettings
from relay.transport.downloads import PATH as DOWNLOADS
from relay.transport.downloads import Downloads, DownloadSettings, File
from relay.transport.grpc import GrpcAgents
from relay.transport.http import PATH, HttpAgents, HttpSettings, Route, bounded, serve
from relay.transport.peers import TrustedProxies
from relay.transport.places import FOR_PROBES, Places, raise_descriptor_limit
from relay.transport.ports import Agents, AssemblyBudget, CloseReason, Connection, StreamSettings
from relay.transport.upgrade import Upgrades
from relay.transport.websocket import WebSocketFactory

_log = log.get("opamp-relay.node")
_SLICE = 200
_WATCH_S = 0.5
"""A credential must not be usable a second after its end or revocation."""


class Serving:
    """Everything that listens. Call `open`, then `refuse_new`, then close the stack given to `open`."""

    def __init__(
        self,
        settings: NodeSettings,
        credentials: Credentials,
        policy: PolicyHolder,
        *,
        unknown_key: Callable[[], None],
        clock: Clock,
        metrics: NodeMetrics,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._policy = policy
        self._changed = asyncio.Event()
        self.authenticator = Authenticator(
            credentials.chain,
            clock=clock,
            metrics=metrics,
            has_policy=lambda: policy.accepted and policy.knows_revocations,
            retry_after_s=settings.server.limits.retry_after,
            unknown_key=unknown_key,
        )
        self._clock = clock
        self._metrics = metrics
        server, limits = settings.server, settings.server.limits
        self.places = _count_places(
            min(server.websocket.max_connections, server.max_connections or server.websocket.max_connections)
        )
        self.proxies = TrustedProxies(server.trusted_proxies)
        endpoints = (server.websocket.endpoint, server.http.endpoint)
        # Where nobody needs a credential, a browser on this machine must not be talked into reaching us.
        self._own_host = (
            not self.authenticator.is_required and not server.trusted_proxies and all(map(is_loopback, endpoints))
        )
        self._budget = AssemblyBudget(limits.assembly_budget_bytes)
        self.ports: dict[str, int] = {}
        """`websocket`, `http`, `grpc`, `metrics` → the open port."""

    async def open(
        self,
        started: contextlib.AsyncExitStack,
        agents: Agents,
        admin: Admin,
        find_file: Callable[[str, dict[str, str]], File],
    ) -> None:
        """Open all ports.

        Args:
            started: receives the callbacks that close the ports.
            agents: answers the agents.
            find_file: see `Downloads`.

        Raises:
            OSError: a port cannot be opened.
        """
        settings, metrics = self._settings, self._metrics
        server, limits = settings.server, settings.server.limits
        places, proxies, budget = self.places, self.proxies, self._budget
        stream = StreamSettings(limits.max_message_bytes, limits.max_send_buffer_bytes, limits.send_stall_timeout)
        self.websockets = WebSocketFactory(agents, stream, budget=budget, metrics=metrics, clock=self._clock)
        places.count(lambda: len(self.websockets.open))
        self._upgrades = Upgrades(
            self.websockets, proxies, PATH, self.authenticator, retry_after_s=limits.retry_after, metrics=metrics
        )
        exchange = HttpAgents(
            agents,
            HttpSettings(
                limits.max_message_bytes, limits.body_timeout, limits.http_keepalive, server.compression.enabled
            ),
            proxies,
            self._upgrades,
            self.authenticator,
            budget=budget,
            metrics=metrics,
        )
        downloads = self._open_downloads(started, find_file)
        routes: list[Route] = [("*", PATH, exchange.handle), ("*", DOWNLOADS + "{sha256}", downloads.handle)]
        http_runner, factory = await serve(
            [*routes, *self._people(admin)],
            limits.http_keepalive,
            limits.max_header_bytes,
            own_host=self._own_host,
        )
        started.push_async_callback(http_runner.cleanup)
        probes_runner, probes = await serve(
            admin.health_routes(is_open=not self.authenticator.is_required), limits.http_keepalive
        )
        started.push_async_callback(probes_runner.cleanup)
        self._door = Door(
            DoorSettings(limits.max_header_bytes, limits.header_timeout, limits.retry_after, own_host=self._own_host),
            places,
            proxies,
            self.authenticator,
            self._upgrades,
            factory,
            probes,
            downloads,
            metrics=metrics,
        )
        started.push_async_callback(self._door.close)
        tls = self._tls_context if server.tls.enabled else None
        for name, endpoint in (("websocket", server.websocket.endpoint), ("http", server.http.endpoint)):
            host, port = split_endpoint(endpoint)
            with explain_bind_errors(f"server.{name}.endpoint", f"--{name}", host, port):
                self.ports[name] = await self._door.listen(host, port, tls)
        await self._open_grpc(started, agents, stream)
        await self._open_metrics(started, admin)
        metrics.sources["opamp_relay_assembly_bytes"] = ("Bytes of unfinished messages", lambda: budget.used)

    def _people(self, admin: Admin) -> list[Route]:
        """The routes for people and probes."""
        if not self.authenticator.is_required:
            return [*admin.probe_routes(), *admin.api_routes()]
        policy = self._policy
        readers = Readers(lambda: policy.access.readers, self.authenticator, self.proxies, clock=self._clock)
        guarded = [admin.metrics_route(), *admin.api_routes()]
        return [
            *admin.health_routes(is_open=False),
            *((method, path, readers.guarded(handler)) for method, path, handler in guarded),
            ("*", "/api/v1/{path:.*}", readers.guarded(not_found)),
        ]

    def _open_downloads(
        self, started: contextlib.AsyncExitStack, find_file: Callable[[str, dict[str, str]], File]
    ) -> Downloads:
        settings, metrics = self._settings.packages, self._metrics
        stall_s = self._settings.server.limits.send_stall_timeout
        bounds = DownloadSettings(
            settings.max_downloads, stall_s, settings.bandwidth.total, settings.bandwidth.per_agent
        )
        downloads = self.downloads = Downloads(find_file, bounds, refused=metrics.refused)
        downloads.start()
        started.push_async_callback(downloads.close)
        metrics.downloads = lambda: (downloads.sent_bytes, downloads.done, downloads.broken)
        metrics.sources["opamp_relay_blob_serving"] = ("Package downloads in progress", lambda: downloads.active)
        return downloads

    async def _open_grpc(self, started: contextlib.AsyncExitStack, agents: Agents, stream: StreamSettings) -> None:
        server = self._settings.server
        self.grpc = GrpcAgents(
            agents,
            stream,
            places=self.places,
            proxies=self.proxies,
            authenticator=self.authenticator,
            min_tls=server.tls.min_version,
            retry_after_s=server.limits.retry_after,
            metrics=self._metrics,
            clock=self._clock,
        )
        started.push_async_callback(self.grpc.stop)
        with explain_bind_errors("server.grpc.endpoint", "--grpc", *split_endpoint(server.grpc.endpoint)):
            await self.grpc.start(server.grpc.endpoint, self._credentials.grpc_server())
        self.ports["grpc"] = self.grpc.port

    async def _open_metrics(self, started: contextlib.AsyncExitStack, admin: Admin) -> None:
        is_open = not self.authenticator.is_required
        runner, probes = await serve(admin.probe_routes(is_open=is_open), self._settings.server.limits.http_keepalive)
        started.push_async_callback(runner.cleanup)
        host, port = split_endpoint(self._settings.telemetry.metrics.endpoint)
        with explain_bind_errors("telemetry.metrics.endpoint", "--metrics", host, port):
            listening = await asyncio.get_running_loop().create_server(bounded(probes, FOR_PROBES), host, port)
        started.callback(listening.close)
        self.ports["metrics"] = listening.sockets[0].getsockname()[1]

    def _tls_context(self) -> ssl.SSLContext:
        context = self._credentials.current.tls
        assert context is not None
        return context

    async def watch_credentials(self) -> None:
        """Load credentials that change on disk, and close sessions whose credential has ended. Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await self._changed.wait()
            self._reload()
            is_changed = self._changed.is_set()
            self._changed.clear()
            if self.authenticator.is_required:
                await self._end_sessions(is_changed)

    def _reload(self) -> None:
        if self._credentials.refresh():
            self.credentials_changed()

    def _use_credentials(self) -> None:
        chain = self._credentials.chain
        if chain is not None:
            self.authenticator.use(chain)

    def credentials_changed(self) -> None:
        """Go by other credentials at once, and close the sessions of those that are no longer accepted."""
        self._use_credentials()
        self._changed.set()

    async def _end_sessions(self, is_changed: bool) -> None:
        """Close the sessions whose credential has ended; if credentials changed, also those that were taken away."""
        for i, connection in enumerate(self.connections):
            if i % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)  # heartbeats pass between
            caller, reason = connection.caller, None
            if is_changed and caller.principal is not None:
                principal = self.authenticator.reconsidered(caller.principal)
                reason = CloseReason.REVOKED if principal is None else None
                connection.caller = caller._replace(principal=principal or caller.principal)
            if self.authenticator.has_ended(connection.caller.principal):
                reason = CloseReason.CREDENTIAL_EXPIRED
            if reason is not None:
                self._log_end(connection, reason)
                connection.close(reason)

    def _log_end(self, connection: Connection, reason: CloseReason) -> None:
        caller = connection.caller
        if caller.principal is not None:
            event = "credential_revoked" if reason is CloseReason.REVOKED else "credential_expired"
            _log.info(
                event,
                subject=caller.principal.subject,
                credential=caller.principal.credential_id,
                remote_addr=caller.remote,
            )

    @property
    def connections(self) -> list[Connection]:
        """All connections that allow pushes, also those on which no agent has spoken yet."""
        return [*self.websockets.open, *self.grpc.open]

    def refuse_new(self) -> None:
        """Refuse new connections from now on."""
        self._door.draining = self.grpc.draining = True
        self._upgrades.accepting = False


def _count_places(wanted: int) -> Places:
    places = Places(wanted, raise_descriptor_limit())
    if places.limit < wanted:
        _log.warning(
            "few_descriptors",
            max_connections=wanted,
            places=places.limit,
            consequence="further agents are refused with 503; raise the limit of open files (ulimit -n)",
        )
    return places

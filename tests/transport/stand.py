"""A door with real sockets in front of scripted `Agents`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from relay.aio.clock import SystemClock
from relay.auth.chain import Chain
from relay.errors import RelayError
from relay.observe.metrics import NodeMetrics
from relay.opamp import body
from relay.transport.authentication import Authenticator
from relay.transport.door import Door, DoorSettings
from relay.transport.downloads import PATH as DOWNLOADS
from relay.transport.downloads import Denied, Downloads, DownloadSettings, File
from relay.transport.http import PATH, HttpAgents, HttpSettings, Route, serve
from relay.transport.peers import TrustedProxies
from relay.transport.places import Places
from relay.transport.ports import AssemblyBudget, Caller, CloseReason, Connection, StreamSettings
from relay.transport.upgrade import Upgrades
from relay.transport.websocket import WebSocketFactory


class Echo:
    """Answers every message with its uid and records what it received."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.connections: list[Connection] = []
        self.remotes: list[str] = []
        self.gone: list[Connection] = []
        self.bad: list[bytes] = []
        self.resumed_count = 0
        self.error: RelayError | None = None
        self.extra = b""

    def receive(self, connection: Connection, caller: Caller, content: bytes) -> bytes:
        message = body.decode(content)
        if self.error is not None:
            raise self.error
        self.received.append(content)
        self.connections.append(connection)
        self.remotes.append(caller.remote)
        return body.uid_field(message.instance_uid) + self.extra

    def resumed(self, connection: Connection) -> None:
        self.resumed_count += 1

    def disconnected(self, connection: Connection) -> None:
        self.gone.append(connection)

    def misbehaved(self, connection: Connection, uid: bytes) -> None:
        self.bad.append(uid)
        if len(self.bad) == 3:
            connection.close(CloseReason.BAD_MESSAGES)


class Stand:
    def __init__(
        self,
        agents: Echo,
        door: Door,
        websockets: WebSocketFactory,
        port: int,
        metrics: NodeMetrics,
        budget: AssemblyBudget,
    ) -> None:
        self.websockets = websockets
        self.agents = agents
        self.door = door
        self.port = port
        self.metrics = metrics
        self.budget = budget

    def fall_quiet(self) -> bool:
        """Probe all connections as if they had been idle for a while; return whether all buffers are released."""
        for connection in list(self.websockets.open):
            connection.probe(SystemClock().monotonic() + 6, 25, 300)
        return self.budget.used == 0


@asynccontextmanager
async def stand(
    *,
    max_connections: int = 100,
    header_timeout_s: float = 5,
    max_header_bytes: int = 2048,
    max_message_bytes: int = 1 << 20,
    max_send_buffer_bytes: int = 1 << 20,
    send_stall_s: float = 30,
    body_timeout_s: float = 5,
    budget_bytes: int = 1 << 22,
    tls: ssl.SSLContext | None = None,
    downloads: Downloads | None = None,
    trusted: tuple[str, ...] = (),
    descriptors: int = 10_000,
    chain: Chain | None = None,
) -> AsyncIterator[Stand]:
    agents, metrics, budget = Echo(), NodeMetrics("local"), AssemblyBudget(budget_bytes)
    websockets = WebSocketFactory(
        agents,
        StreamSettings(max_message_bytes, max_send_buffer_bytes, send_stall_s),
        budget=budget,
        metrics=metrics,
        clock=SystemClock(),
    )
    authenticator = Authenticator(chain, clock=SystemClock(), metrics=metrics)
    places, proxies = Places(max_connections, descriptors), TrustedProxies(trusted)
    places.count(lambda: len(websockets.open))
    upgrades = Upgrades(websockets, proxies, PATH, authenticator, retry_after_s=30, metrics=metrics)
    exchange = HttpAgents(
        agents,
        HttpSettings(max_message_bytes, body_timeout_s, 60, True),
        proxies,
        upgrades,
        authenticator,
        budget=budget,
        metrics=metrics,
    )

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    downloads = downloads or Downloads(_no_file, DownloadSettings(10, 5.0, None, None), refused=metrics.refused)
    downloads.start()
    routes: list[Route] = [("*", PATH, exchange.handle), ("*", DOWNLOADS + "{sha256}", downloads.handle)]
    runner, factory = await serve([*routes, ("GET", "/health", health)], 60)
    probes_runner, probes = await serve([("GET", "/health", health)], 60)
    limits = DoorSettings(max_header_bytes, header_timeout_s, 7)
    door = Door(limits, places, proxies, authenticator, upgrades, factory, probes, downloads, metrics=metrics)
    port = await door.listen("127.0.0.1", 0, (lambda: tls) if tls is not None else None)
    try:
        yield Stand(agents, door, websockets, port, metrics, budget)
    finally:
        for socket in list(websockets.open):
            transport: Any = socket._transport
            transport.disconnect(False)
        await door.close()
        await downloads.close()
        await runner.cleanup()
        await probes_runner.cleanup()


def _no_file(sha256: str, query: dict[str, str]) -> File:
    raise Denied(404, "there are no files here")

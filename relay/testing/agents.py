"""Simulated agents: one agent's conversation without I/O, and a runner for thousands over WebSocket, or some over HTTP.

A simulated agent behaves like a supervised Collector. It describes itself, accepts configs and checks them (YAML, and
whether pipelines name configured components), reports APPLYING and then APPLIED or FAILED with a reason, sends heartbeats,
and reconnects after a disconnect. It downloads offered packages, and discards them once their hash is verified.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from relay.aio.tasks import Tasks, beside
from relay.ids import new_instance_uid
from relay.opamp.capabilities import AgentCapabilities
from relay.pb.opamp.v1 import opamp_pb2 as pb

CAPABILITIES = int(
    AgentCapabilities.REPORTS_STATUS
    | AgentCapabilities.ACCEPTS_REMOTE_CONFIG
    | AgentCapabilities.REPORTS_EFFECTIVE_CONFIG
    | AgentCapabilities.REPORTS_HEALTH
    | AgentCapabilities.REPORTS_REMOTE_CONFIG
    | AgentCapabilities.REPORTS_HEARTBEAT
    | AgentCapabilities.ACCEPTS_PACKAGES
    | AgentCapabilities.REPORTS_PACKAGE_STATUSES
)

KINDS: dict[str, dict[str, str]] = {
    "gateway": {"service.name": "otelcol-gateway", "role": "gateway", "tier": "production", "os.type": "linux"},
    "host": {"service.name": "otelcol-host", "role": "host", "tier": "development", "os.type": "linux"},
}
"""Attributes of two kinds of agents that a policy can tell apart."""

EventHandler = Callable[["SimulatedAgent", str, str], None]
"""(agent, event, detail); events: connected, received, applied, failed, installed, not_installed, disconnected,
unreachable."""


def _ignore(agent: SimulatedAgent, event: str, detail: str) -> None:
    pass


@dataclass(slots=True)
class SimulatedAgent:
    """One agent's side of the conversation, without a socket."""

    name: str
    attributes: dict[str, str]
    uid: bytes
    capabilities: int = CAPABILITIES
    check: bool = True
    """Check configs and refuse bad ones, as a Collector does."""
    on_event: EventHandler = _ignore
    sequence: int = -1
    applied: bytes | None = None
    """The config in force (in slot "")."""
    status: pb.RemoteConfigStatus = field(default_factory=pb.RemoteConfigStatus)
    full_requests: int = 0
    offer: pb.PackagesAvailable | None = None
    """Packages to download; whoever runs the agent takes them."""
    packages: pb.PackageStatuses = field(default_factory=pb.PackageStatuses)

    def report(self, **parts: Any) -> bytes:
        """An AgentToServer with these sub-messages; without any it is a heartbeat."""
        self.sequence += 1
        return pb.AgentToServer(
            instance_uid=self.uid, sequence_num=self.sequence, capabilities=self.capabilities, **parts
        ).SerializeToString()

    def full_report(self) -> bytes:
        """A report of everything."""
        description = pb.AgentDescription()
        for key, value in self.attributes.items():
            target = (
                description.identifying_attributes
                if key.startswith("service.")
                else description.non_identifying_attributes
            )
            target.add(key=key).value.string_value = value
        parts: dict[str, Any] = {
            "agent_description": description,
            "health": pb.ComponentHealth(healthy=True, status="running"),
            "remote_config_status": self.status,
        }
        if self.applied is not None:
            parts["effective_config"] = self._effective()
        if self.packages.server_provided_all_packages_hash:
            parts["package_statuses"] = self.packages
        return self.report(**parts)

    def _effective(self) -> pb.EffectiveConfig:
        effective = pb.EffectiveConfig()
        effective.config_map.config_map[""].body = self.applied or b""
        effective.config_map.config_map[""].content_type = "text/yaml"
        return effective

    def receive(self, message: bytes) -> list[bytes]:
        """Handle a ServerToAgent; return the messages to send in response."""
        answer = pb.ServerToAgent.FromString(message)
        out: list[bytes] = []
        if answer.HasField("agent_identification"):
            self.uid = answer.agent_identification.new_instance_uid
        if answer.flags & pb.ServerToAgentFlags_ReportFullState:
            self.full_requests += 1
            out.append(self.full_report())
        if answer.HasField("remote_config"):
            out += self._apply_config(answer.remote_config)
        if answer.HasField("packages_available"):
            self.offer = answer.packages_available
        return out

    def missing_packages(self, offer: pb.PackagesAvailable) -> list[str]:
        """Names of the offered packages that the agent does not have."""
        packages = self.packages.packages
        return [
            name
            for name, p in offer.packages.items()
            if name not in packages or packages[name].agent_has_hash != p.hash
        ]

    def begin_install(self, offer: pb.PackagesAvailable) -> bytes:
        """Start on an offer, drop packages that are not in it, and return the report."""
        statuses = self.packages
        statuses.server_provided_all_packages_hash = offer.all_packages_hash
        for name in [name for name in statuses.packages if name not in offer.packages]:
            del statuses.packages[name]
        for name in self.missing_packages(offer):
            entry, package = statuses.packages[name], offer.packages[name]
            entry.name, entry.status, entry.error_message = name, pb.PackageStatusEnum_Downloading, ""
            entry.server_offered_version, entry.server_offered_hash = package.version, package.hash
        return self.report(package_statuses=statuses)

    def finish_install(self, offer: pb.PackagesAvailable, problems: dict[str, str]) -> bytes:
        """Finish an offer and return the report.

        Args:
            problems: package → why it was not installed.
        """
        for name in self.missing_packages(offer):
            entry, package = self.packages.packages[name], offer.packages[name]
            if name in problems:
                entry.status, entry.error_message = pb.PackageStatusEnum_InstallFailed, problems[name]
            else:
                entry.status = pb.PackageStatusEnum_Installed
                entry.agent_has_version, entry.agent_has_hash = package.version, package.hash
        for name, reason in problems.items():
            self.on_event(self, "not_installed", f"{name}: {reason}")
        if not problems:
            self.on_event(self, "installed", ", ".join(f"{n} {p.version}" for n, p in sorted(offer.packages.items())))
        return self.report(package_statuses=self.packages)

    def _apply_config(self, remote: pb.AgentRemoteConfig) -> list[bytes]:
        if remote.config_hash == self.status.last_remote_config_hash:
            return []
        self.on_event(self, "received", remote.config_hash.hex())
        status = self.status = pb.RemoteConfigStatus(
            last_remote_config_hash=remote.config_hash, status=pb.RemoteConfigStatuses_APPLYING
        )
        out = [self.report(remote_config_status=status)]
        body = remote.config.config_map[""].body if "" in remote.config.config_map else b""
        reason = problem_with(body) if self.check else None
        if reason is None:
            self.applied = body
            status.status = pb.RemoteConfigStatuses_APPLIED
            out.append(self.report(remote_config_status=status, effective_config=self._effective()))
            self.on_event(self, "applied", remote.config_hash.hex())
        else:
            status.status = pb.RemoteConfigStatuses_FAILED
            status.error_message = reason
            out.append(self.report(remote_config_status=status))
            self.on_event(self, "failed", reason)
        return out


def problem_with(config: bytes) -> str | None:
    """Why a Collector would not start with this config; None if it would."""
    try:
        tree = yaml.load(config, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        return f"cannot parse the configuration: {error}"
    if not isinstance(tree, dict):
        return "the configuration is not a mapping"
    pipelines = (tree.get("service") or {}).get("pipelines") or {}
    for name, pipeline in pipelines.items():
        for kind in ("receivers", "processors", "exporters"):
            for component in (pipeline or {}).get(kind) or []:
                if component not in (tree.get(kind) or {}) and component not in (tree.get("connectors") or {}):
                    return f"service::pipelines::{name}: references {kind[:-1]} {component!r} which is not configured"
    return None


def fleet(
    count: int, *, prefix: str = "agent", chance: random.Random, on_event: EventHandler = _ignore
) -> list[SimulatedAgent]:
    """Make agents, alternating between the kinds, named `prefix-0001` and so on."""
    agents = []
    kinds = list(KINDS.items())
    for i in range(count):
        kind, attributes = kinds[i % len(kinds)]
        name = f"{prefix}-{i + 1:04d}"
        extra = {
            "service.instance.id": name,
            "service.version": "0.149.0",
            "host.name": f"{kind}-{i + 1:04d}.example.internal",
            "host.arch": "amd64",
            "deployment.environment": attributes["tier"],
            "cloud.availability_zone": f"zone-{i % 3}",
        }
        uid = new_instance_uid(1_760_000_000_000 + i, chance.randbytes(10))
        agents.append(SimulatedAgent(name, {**attributes, **extra}, uid, on_event=on_event))
    return agents


class _Socket(WSListener):
    def __init__(self, agent: SimulatedAgent, on_offer: Callable[[], None]) -> None:
        self._agent = agent
        self._on_offer = on_offer
        self._transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        # The first connection reports the full state; later ones continue from there (spec: status compression).
        self.send(self._agent.full_report() if self._agent.sequence < 0 else self._agent.report())
        self._agent.on_event(self._agent, "connected", "")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()
        elif frame.msg_type is WSMsgType.BINARY:
            for message in self._agent.receive(frame.get_payload_as_bytes()[1:]):
                self.send(message)
            if self._agent.offer is not None:
                self._on_offer()

    def send(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.send(WSMsgType.BINARY, b"\x00" + body)


class Simulation:
    """Runs agents against a node.

    Args:
        endpoint: ws://, wss://, http:// or https:// URL.
        heartbeat_s: interval of heartbeats, or of polls.
        together: the most connections opened at once.
        token: sent by all agents, as `Authorization: Bearer`; empty for none.
    """

    def __init__(
        self,
        agents: list[SimulatedAgent],
        endpoint: str,
        *,
        heartbeat_s: float = 30.0,
        together: int = 100,
        chance: random.Random | None = None,
        ssl_context: Any = None,
        token: str = "",
    ) -> None:
        self.agents = agents
        self.endpoint = endpoint
        self._heartbeat_s = heartbeat_s
        self._rng = chance or random.Random()
        self._gate = asyncio.Semaphore(together)
        self._tasks = Tasks()
        self._ssl = ssl_context
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def start(self) -> None:
        """Start all agents, each in its own task."""
        run = self._over_http if self.endpoint.startswith("http") else self._over_websocket
        for agent in self.agents:
            self._tasks.spawn(run(agent), name=agent.name)

    async def stop(self) -> None:
        """Stop all agents without an `agent_disconnect`."""
        await self._tasks.close()

    async def _over_websocket(self, agent: SimulatedAgent) -> None:
        failures = 0
        while True:
            try:
                async with self._gate:
                    transport, listener = await ws_connect(
                        lambda: self._socket(agent),
                        self.endpoint,
                        ssl_context=self._ssl,
                        extra_headers=self._headers,
                        use_aiofastnet=False,
                        read_buffer_init_size=4096,
                    )
            except Exception as error:
                if failures == 0:
                    agent.on_event(agent, "unreachable", str(error) or type(error).__name__)
                failures += 1
                await asyncio.sleep(self._rng.uniform(0.2, min(5.0, 0.5 * failures)))
                continue
            failures = 0
            try:
                while not transport.is_disconnected:
                    await self._sleep_or_end(transport)
                    if not transport.is_disconnected:
                        listener.send(agent.report())  # type: ignore[attr-defined]
            finally:
                transport.disconnect(False)
            agent.on_event(agent, "disconnected", "")
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    def _socket(self, agent: SimulatedAgent) -> _Socket:
        def on_offer() -> None:
            self._tasks.spawn(self._install(agent, socket.send), name=f"{agent.name}-install")

        socket = _Socket(agent, on_offer)
        return socket

    async def _install(self, agent: SimulatedAgent, send: Callable[[bytes], None]) -> None:
        offer, agent.offer = agent.offer, None
        if offer is None:
            return
        send(agent.begin_install(offer))
        problems: dict[str, str] = {}
        async with self._gate, aiohttp.ClientSession() as client:
            for name in agent.missing_packages(offer):
                if reason := await self._download(client, offer.packages[name].file):
                    problems[name] = reason
        send(agent.finish_install(offer, problems))

    async def _download(self, client: aiohttp.ClientSession, file: pb.DownloadableFile) -> str:
        """Download a file; return why it cannot be used, or "" if it can."""
        digest = hashlib.sha256()
        try:
            async with client.get(file.download_url, ssl=self._ssl or True) as answer:
                if answer.status != 200:
                    return f"status {answer.status}: {(await answer.text()).strip()[:200]}"
                async for piece in answer.content.iter_chunked(1 << 16):
                    digest.update(piece)
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__
        return "" if digest.digest() == file.content_hash else "the file does not match its hash"

    async def _sleep_or_end(self, transport: WSTransport) -> None:
        async with beside(transport.wait_disconnected(), name="disconnected") as ended:
            await asyncio.wait([ended], timeout=self._heartbeat_s * self._rng.uniform(0.9, 1.1))

    async def _over_http(self, agent: SimulatedAgent) -> None:
        headers = {"Content-Type": "application/x-protobuf", **self._headers}
        refused = 0
        async with aiohttp.ClientSession(headers=headers) as client:
            while True:
                outgoing = [agent.full_report() if agent.sequence < 0 else agent.report()]
                try:
                    while outgoing:
                        async with (
                            self._gate,
                            client.post(self.endpoint, data=outgoing.pop(0), ssl=self._ssl) as answer,
                        ):
                            if answer.status == 200:
                                outgoing += agent.receive(await answer.read())
                            elif answer.status != refused:
                                agent.on_event(agent, "unreachable", f"status {answer.status}")
                            refused = answer.status if answer.status != 200 else 0
                        if agent.offer is not None:
                            await self._install(agent, outgoing.append)
                except (aiohttp.ClientError, OSError):
                    agent.on_event(agent, "disconnected", "")
                await asyncio.sleep(self._heartbeat_s * self._rng.uniform(0.9, 1.1))

"""A node put together: the only place of this program that builds adapters."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import uuid
from pathlib import Path
from typing import Any

import grpc

from relay import __version__
from relay.aio.clock import Clock, SystemClock
from relay.aio.loop import settle_memory
from relay.aio.ports import opening
from relay.aio.tasks import Tasks
from relay.errors import StoreError
from relay.fleet.cohort import Cohorts
from relay.link.blobs import BlobSource
from relay.link.client import Downward, LinkClient, Upward
from relay.link.protocol import ReportSender, version_message
from relay.node.admin import Admin, Condition
from relay.node.drain import drain
from relay.node.hub import Hub
from relay.node.packages import PackageRules, Packages
from relay.node.policy import PolicyHolder
from relay.node.registry import EFFECTIVE_BUCKET, Registry
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import RENDERERS
from relay.settings.parts import split_endpoint
from relay.settings.programs import NodeSettings
from relay.store.blobs import BlobStore
from relay.store.local import LocalStore
from relay.transport.door import Door, DoorSettings
from relay.transport.downloads import PATH as DOWNLOADS
from relay.transport.downloads import Downloads, DownloadSettings
from relay.transport.grpc import GrpcAgents
from relay.transport.http import PATH, HttpAgents, HttpSettings, Route, bounded, serve
from relay.transport.peers import TrustedProxies
from relay.transport.places import FOR_PROBES, Places, raise_descriptor_limit
from relay.transport.ports import AssemblyBudget, Connection, StreamSettings
from relay.transport.upgrade import Upgrades
from relay.transport.websocket import WebSocketFactory

_log = log.get("opamp-relay.node")
_SELF_BUCKET = "self"
"""What the node remembers of itself."""
_SWEEP_S = 10.0
_SLICE = 200
_NEARLY_FULL = 0.9
_UNHEARD_S = 30.0
"""Reports go up every 10 s."""
_GOODBYE_S = 3.0
"""How long the last report may take."""
_PROTECT_S = 1.0
_EXPIRE_S = 3600.0
_VERIFY_S = 60.0
"""How often both ends compare their sums although nothing has changed."""


class Node:
    """One regional relay node. `start`, then `stop`; a second start needs a new object."""

    def __init__(self, settings: NodeSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._started = contextlib.AsyncExitStack()
        self._draining = self._leaving = False
        self._withheld = False
        self._began = self._clock.monotonic()
        self._listening = False
        self.metrics = NodeMetrics(settings.node.region)
        self.ports: dict[str, int] = {}
        """`websocket`, `http`, `grpc`, `metrics` → the port that is open."""

    async def start(self) -> None:
        """Open the store, then the ports, then the link. Agents are served from disk at once.

        Raises:
            StoreError: the data folder cannot be used.
            OSError: a port cannot be opened.
        """
        async with contextlib.AsyncExitStack() as started:
            await self._start(started)
            self._started = started.pop_all()

    async def _start(self, started: contextlib.AsyncExitStack) -> None:
        settings, clock, metrics = self._settings, self._clock, self.metrics
        region, name = settings.node.region, settings.node.name
        limits = settings.server.limits
        store = self.store = LocalStore(Path(settings.node.data_dir) / "node.sqlite3")
        started.push_async_callback(self._close_store)
        if store.problem is not None:
            _log.error("store_degraded", problem=store.problem, consequence="starting with what can be read")
        if store.set_aside is not None:
            _log.error(
                "store_corrupt", set_aside=str(store.set_aside), consequence="starting empty; all is fetched anew"
            )
        batching = settings.server.batching
        sender = ReportSender(max_agents=batching.max_batch_size)
        self._settle_in(store, region)
        self.cohorts = Cohorts(region, settings.trusted_attributes)
        self.registry = Registry(store, sender, clock=clock, wake=self._wake)
        identity = self._identity()
        self._blob_source = BlobSource(settings.control_plane.endpoint, identity)
        started.push_async_callback(self._blob_source.close)
        self.packages = self._make_packages()
        started.push_async_callback(self.packages.close)
        self.policy = PolicyHolder(region, store, self.cohorts, changed=self._policy_changed)
        self.packages.policy_changed(self.cohorts.snapshot)
        self.hub = Hub(
            self.registry,
            self.cohorts,
            clock=clock,
            metrics=metrics,
            max_agents=limits.max_agents,
            max_agents_per_connection=limits.max_agents_per_connection or limits.max_agents,
            max_bad_messages=limits.max_bad_messages,
            heartbeat_s=settings.server.heartbeat_interval,
            idle_s=limits.idle_timeout,
            max_elements=limits.max_message_elements,
            full_state_per_second=limits.full_state_per_second,
            retry_after_s=limits.retry_after,
            may_offer=self._may_offer,
            packages=self.packages,
        )
        started.push_async_callback(self._save)
        started.push_async_callback(self.hub.close)
        self._sender = sender
        self.link = LinkClient(
            settings.control_plane.endpoint,
            identity,
            Downward(self.policy.receiver, RENDERERS, self.policy.put_in_force, self._fresh),
            Upward(sender, self._next_report, self.hub.release, batching.timeout if batching.enabled else 0.0),
            clock=clock,
            metrics=metrics,
        )
        self._gauges()
        self.policy.protect(self.registry, math.inf)
        await self._open_ports(started)
        self._listening = True
        started.push_async_callback(self._tasks.close)
        self._tasks.spawn(self.link.run(), name="link")
        self._tasks.spawn(self._housekeeping(), name="housekeeping")
        self._tasks.spawn(self._ping(), name="ping")
        self._tasks.spawn(self._protect(), name="protect")
        settle_memory()
        _log.info(
            "node_started",
            region=region,
            node=name,
            ports=self.ports,
            agents_known=len(self.registry),
            manifest=self.policy.receiver.version,
        )

    def _settle_in(self, store: LocalStore, region: str) -> None:
        """Begin anew where the data are of another region: its policy and its numbers mean nothing here."""
        known = store.get(_SELF_BUCKET, b"region")
        if known is not None and known != region.encode():
            before = known.decode("utf-8", "replace")
            _log.error(
                "region_changed", before=before, now=region, consequence="policy and agents of before are forgotten"
            )
            store.clear()
        store.put(_SELF_BUCKET, b"region", region.encode())

    def _make_packages(self) -> Packages:
        settings = self._settings.packages
        folder = settings.data_dir or str(Path(self._settings.node.data_dir) / "packages")
        return Packages(
            BlobStore(Path(folder), settings.max_bytes, keep_free=settings.keep_free),
            self._blob_source.fetch,
            PackageRules(settings.public_url, settings.require_signature, settings.fetches),
            clock=self._clock,
            metrics=self.metrics,
            wanted=self.cohorts.wanted,
            ready=self._package_came,
            damaged=lambda sha256: self.hub.was_damaged(sha256),
        )

    def _identity(self) -> link_pb2.NodeIdentity:
        trusted = self._settings.trusted_attributes
        return link_pb2.NodeIdentity(
            region=self._settings.node.region,
            name=self._settings.node.name,
            incarnation=uuid.uuid4().hex,
            software_version=__version__,
            trusted_attributes=() if trusted == "all" else trusted,
            all_attributes_trusted=trusted == "all",
        )

    async def _open_ports(self, started: contextlib.AsyncExitStack) -> None:
        settings, metrics = self._settings, self.metrics
        server, limits = settings.server, settings.server.limits
        tls = _tls_context(settings) if server.tls.enabled else None
        budget = self._budget = AssemblyBudget(limits.assembly_budget_bytes)
        most = min(server.websocket.max_connections, server.max_connections or server.websocket.max_connections)
        stream = StreamSettings(limits.max_message_bytes, limits.max_send_buffer_bytes, limits.send_stall_timeout)
        places = self.places = self._count_places(most)
        proxies = self.proxies = TrustedProxies(server.trusted_proxies)
        websockets = self.websockets = WebSocketFactory(
            self.hub, stream, budget=budget, metrics=metrics, clock=self._clock
        )
        places.count(lambda: len(websockets.open))
        upgrades = self._upgrades = Upgrades(
            websockets, proxies, PATH, retry_after_s=limits.retry_after, metrics=metrics
        )
        exchange = HttpAgents(
            self.hub,
            HttpSettings(
                limits.max_message_bytes, limits.body_timeout, limits.http_keepalive, server.compression.enabled
            ),
            proxies,
            upgrades,
            budget=budget,
            metrics=metrics,
        )
        admin = Admin(
            self.registry,
            metrics,
            self.condition,
            self.cohorts,
            lambda: self.packages.problems,
            region=settings.node.region,
            node=settings.node.name,
            trusted=settings.trusted_attributes,
        )
        packages = settings.packages
        bounds = DownloadSettings(
            packages.max_downloads, limits.send_stall_timeout, packages.bandwidth.total, packages.bandwidth.per_agent
        )
        downloads = self.downloads = Downloads(self.packages.find, bounds, refused=metrics.refused)
        downloads.start()
        started.push_async_callback(downloads.close)
        self.metrics.downloads = lambda: (downloads.sent_bytes, downloads.done, downloads.broken)
        routes: list[Route] = [("*", PATH, exchange.handle), ("*", DOWNLOADS + "{sha256}", downloads.handle)]
        http_runner, factory = await serve([*routes, *admin.routes()], limits.http_keepalive, limits.max_header_bytes)
        started.push_async_callback(http_runner.cleanup)
        probes_runner, probes = await serve(admin.health_routes(), limits.http_keepalive)
        started.push_async_callback(probes_runner.cleanup)
        door = self.door = Door(
            DoorSettings(limits.max_header_bytes, limits.header_timeout, limits.retry_after),
            places,
            proxies,
            upgrades,
            factory,
            probes,
            downloads,
            metrics=metrics,
        )
        started.push_async_callback(door.close)
        for port_name, endpoint in (("websocket", server.websocket.endpoint), ("http", server.http.endpoint)):
            host, port = split_endpoint(endpoint)
            with opening(f"server.{port_name}.endpoint", f"--{port_name}", host, port):
                self.ports[port_name] = await door.listen(host, port, tls)
        self.grpc = GrpcAgents(
            self.hub,
            stream,
            places=places,
            proxies=proxies,
            retry_after_s=limits.retry_after,
            metrics=metrics,
            clock=self._clock,
        )
        started.push_async_callback(self.grpc.stop)
        with opening("server.grpc.endpoint", "--grpc", *split_endpoint(server.grpc.endpoint)):
            await self.grpc.start(server.grpc.endpoint, _grpc_credentials(settings) if server.tls.enabled else None)
        self.ports["grpc"] = self.grpc.port
        metrics_runner, probed = await serve(admin.probe_routes(), limits.http_keepalive)
        started.push_async_callback(metrics_runner.cleanup)
        host, port = split_endpoint(settings.telemetry.metrics.endpoint)
        with opening("telemetry.metrics.endpoint", "--metrics", host, port):
            listening = await asyncio.get_running_loop().create_server(bounded(probed, FOR_PROBES), host, port)
        started.callback(listening.close)
        self.ports["metrics"] = listening.sockets[0].getsockname()[1]

    def _count_places(self, wanted: int) -> Places:
        places = Places(wanted, raise_descriptor_limit())
        if places.most < wanted:
            _log.warning(
                "few_descriptors",
                max_connections=wanted,
                places=places.most,
                consequence="past that agents are answered 503; raise the limit of open files (ulimit -n)",
            )
        return places

    # ---- what the parts are given

    def _wake(self) -> None:
        if self._listening:
            self.link.wake()

    def _policy_changed(self, answers_changed: bool) -> None:
        self._sender.tell = True
        self._wake()
        self.packages.policy_changed(self.cohorts.snapshot)
        if answers_changed:
            self.hub.policy_changed()

    def _package_came(self) -> None:
        self._sender.tell = True
        self._wake()
        self.hub.policy_changed()

    def _may_offer(self) -> bool:
        address = self._settings.control_plane
        if not address.max_staleness or address.on_stale == "serve":
            return True
        age = self.link.policy_age_s()
        fresh = age is not None and age <= address.max_staleness
        self._withheld |= not fresh
        return fresh

    def _fresh(self) -> None:
        if self._withheld:  # agents were told nothing because the policy was too old
            self._withheld = False
            self.hub.policy_changed()

    def _next_report(self) -> link_pb2.StatusReport | None:
        registry = self.registry
        report = self._sender.next(
            state=registry.state,
            body=registry.effective_config,
            listings=registry.listings,
            shards=registry.shards.sums,
        )
        if report is not None:
            report.rollup.CopyFrom(registry.rollup.message())
            report.status.CopyFrom(self._status_message())
        return report

    def _status_message(self) -> link_pb2.NodeStatus:
        age = self.link.policy_age_s()
        status = link_pb2.NodeStatus(
            unix_ms=self._clock.unix_ms(),
            policy_age_s=-1.0 if age is None else age,
            rejected=list(self.policy.rejected.values()),
            leaving=self._leaving,
        )
        status.blobs.extend(bytes.fromhex(sha256) for sha256 in self.packages.held)
        for sha256, reason in self.packages.problems.items():
            status.blob_problems.add(sha256=bytes.fromhex(sha256), reason=reason)
        for rollout, reason in self.policy.halted().items():
            status.halted.add(rollout=rollout, reason=reason)
        if self.policy.receiver.version is not None:
            status.manifest.CopyFrom(version_message(self.policy.receiver.version))
        return status

    def condition(self) -> Condition:
        """How the node is, for probes and people."""
        degraded = []
        if self.store.problem is not None:
            degraded.append(f"store: {self.store.problem}")
        if self.store.damaged:
            named = [f"{bucket} {key.hex()[:16]}" for bucket, key in list(self.store.damaged)[:3]]
            degraded.append(f"store: {len(self.store.damaged)} values were damaged and dropped: {', '.join(named)}")
        if self.policy.doubted and not self.policy.missing:
            degraded.append("policy: parts of it were damaged and are lost until it is fetched anew")
        if self.policy.missing:
            degraded.append(
                f"policy: {', '.join(sorted(self.policy.missing)[:5])} was damaged and is to be fetched anew"
            )
        if self.policy.receiver.ahead_of is not None:
            degraded.append(
                f"policy: {list(self.policy.receiver.version or ())} is newer than the control plane's"
                f" {list(self.policy.receiver.ahead_of)}, or of another database; it is served on"
            )
        if self.policy.rejected:
            degraded.append(f"policy: {len(self.policy.rejected)} resources rejected")
        degraded += [f"rollout {name} was halted here: {why}" for name, why in self.policy.halted().items()]
        degraded += [f"package {sha256[:12]}: {why}" for sha256, why in self.packages.problems.items()]
        if self.proxies.unbelieved and not self._settings.packages.public_url:
            degraded.append(
                f"proxies: {self.proxies.unbelieved} says for whom it speaks and is not one of server.trusted_proxies:"
                " addresses of packages and of agents may be the proxy's"
            )
        known, most = len(self.registry), self._settings.server.limits.max_agents
        if known >= _NEARLY_FULL * most:
            degraded.append(f"agents: {known} of {most} (server.limits.max_agents) are known")
        if self.places.most < self.places.wanted:
            degraded.append(f"connections: file descriptors for {self.places.most} of {self.places.wanted}")
        if self.link.unheard_s() > _UNHEARD_S:
            degraded.append(f"link: no report was acknowledged for {self.link.unheard_s():.0f} s")
        if self.link.refusal:
            degraded.append(f"link: reports are refused: {self.link.refusal}")
        if not self._may_offer():
            degraded.append("policy: older than max_staleness, nothing new is offered")
        if self._draining:
            reason = "draining"
        elif not self._listening:
            reason = "starting"
        elif not self.policy.accepted:
            reason = "no policy was ever received"
        else:
            reason = ""
        version = self.policy.receiver.version
        age = self.link.policy_age_s()
        status = {
            "region": self._settings.node.region,
            "node": self._settings.node.name,
            "link": "refused" if self.link.refusal else "up" if self.link.connected else "down",
            "manifest": list(version) if version else None,
            "policy_age_s": None if age is None else round(age, 3),
            "agents": len(self.registry),
            "connected": self.hub.connected,
            "connections": self.places.used,
            "cohorts": len(self.cohorts),
            "halted": self.policy.halted(),
            "rejected": [{"name": r.name, "reason": r.reason} for r in self.policy.rejected.values()],
            "degraded": degraded,
        }
        return Condition(not reason, reason, status)

    def _gauges(self) -> None:
        def age() -> float:
            value = self.link.policy_age_s()
            return self._clock.monotonic() - self._began if value is None else value

        self.metrics.sources.update(
            {
                "opamp_server_connected_agents": ("Agents connected", lambda: self.registry.rollup.connected),
                "opamp_relay_agents": ("Agents known", lambda: len(self.registry)),
                "opamp_relay_connections": ("Open connections of all kinds", lambda: self.places.used),
                "opamp_relay_cohorts": ("Distinct answers", lambda: len(self.cohorts)),
                "opamp_relay_link_up": ("1 while the control plane is there", lambda: float(self.link.connected)),
                "opamp_relay_link_silent_seconds": ("Since the control plane was heard", self.link.silent_s),
                "opamp_relay_policy_age_seconds": (
                    "Since the policy was known to be the newest; before that, since the start",
                    age,
                ),
                "opamp_relay_policy_change_seconds": (
                    "Until the last policy change was offered to all connected agents",
                    lambda: self.hub.last_change_s,
                ),
                "opamp_relay_reports_waiting": ("Changes not yet sent upward", lambda: len(self._sender)),
                "opamp_relay_reports_in_flight": ("Reports not acknowledged", lambda: self._sender.in_flight),
                "opamp_relay_assembly_bytes": ("Held for unfinished messages", lambda: self._budget.used),
                "opamp_relay_blob_bytes": ("Package files on disk", lambda: self.packages.used_bytes),
                "opamp_relay_blob_fetching": ("Package files on their way from above", lambda: self.packages.fetching),
                "opamp_relay_blob_serving": ("Package downloads under way", lambda: self.downloads.active),
                "opamp_relay_store_degraded": ("1 while writes fail", lambda: float(self.store.problem is not None)),
            }
        )

    def _age_or_unknown(self) -> float:
        """How old the policy is; without end where the control plane was not heard since the start."""
        age = self.link.policy_age_s()
        return math.inf if age is None else age

    async def _protect(self) -> None:
        """Look after the region every second, link or no link, and tell how it is: gates wait for a fresh word."""
        while True:
            await asyncio.sleep(_PROTECT_S)
            self.hub.settle()
            self._sender.tell = True
            self._wake()
            if self.policy.protect(self.registry, self._age_or_unknown()):
                self.hub.policy_changed()

    async def _ping(self) -> None:
        """Keep silent connections alive through proxies, and end those that do not answer."""
        limits = self._settings.server.limits
        while True:
            await asyncio.sleep(min(limits.ping_interval / 10, _SWEEP_S))
            for i, connection in enumerate(self._connections()):
                if i % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                connection.probe(self._clock.monotonic(), limits.ping_interval, limits.idle_timeout)

    async def _housekeeping(self) -> None:
        expire_at = self._clock.monotonic() + _EXPIRE_S
        verify_at = self._clock.monotonic() + _VERIFY_S
        said = None
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.hub.sweep()
            self.registry.forget_goodbyes(self._settings.node.goodbye_ttl)
            self.packages.tick()
            now = self._clock.monotonic()
            self.metrics.store_failures = self.store.failures
            self._sender.tell = True
            if now >= verify_at:
                verify_at = now + _VERIFY_S
                self._sender.verify = True
            self._wake()
            if self.store.problem != said:
                said = self.store.problem
                _log.error("store_degraded", problem=said) if said else _log.info("store_recovered")
            if now >= expire_at:
                expire_at = now + _EXPIRE_S
                await self._expire()

    async def _expire(self) -> None:
        try:
            digests = await asyncio.to_thread(self.store.keys, EFFECTIVE_BUCKET)
        except StoreError as error:
            _log.error("expiry_failed", error=str(error))
        else:
            self.registry.expire(self._settings.node.record_ttl, digests)
            self.cohorts.drop_unused(self.registry)
            self.store.damaged.clear()

    def _connections(self) -> list[Connection]:
        """All connections that can be pushed to, also those that no agent has spoken on."""
        return [*self.websockets.open, *self.grpc.open]

    # ---- the end

    async def stop(self) -> bool:
        """Send agents away evenly, then write everything, then close.

        Returns:
            Whether all was written: nothing that was answered is lost.
        """
        self._draining = True
        self.door.draining = self.grpc.draining = True
        self._upgrades.accepting = False
        connections = self._connections()
        _log.info("node_draining", connections=len(connections), seconds=self._settings.drain.seconds)
        await drain(connections, self._settings.drain.seconds, self._clock)
        await self._say_goodbye()
        self._listening = False
        await self._started.aclose()
        if self.store.lost:
            _log.error("records_lost", count=self.store.lost, problem=self.store.problem)
        _log.info("node_stopped")
        return not self.store.lost

    async def _say_goodbye(self) -> None:
        """Tell the control plane the last of this region's agents, and that nobody need wait for this node."""
        if not self.link.connected:
            return
        self.registry.work_off()
        self._leaving = self._sender.tell = True
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self.link.flush()
        except TimeoutError:
            _log.warning("goodbye_not_heard", waiting=len(self._sender))

    async def _save(self) -> None:
        self.registry.save_all()
        with contextlib.suppress(StoreError):
            await self.store.flush()

    async def _close_store(self) -> None:
        await asyncio.to_thread(self.store.close)


def _tls_context(settings: NodeSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.server.tls.cert_file, settings.server.tls.key_file)
    return context


def _grpc_credentials(settings: NodeSettings) -> Any:
    key = Path(settings.server.tls.key_file).read_bytes()
    certificate = Path(settings.server.tls.cert_file).read_bytes()
    return grpc.ssl_server_credentials([(key, certificate)])

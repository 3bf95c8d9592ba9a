"""A control plane put together: the only place of this program that builds adapters."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn

from relay import __version__
from relay.aio.clock import Clock, SystemClock
from relay.aio.ports import opening
from relay.aio.tasks import Tasks
from relay.control.api.app import build_api
from relay.control.condition import Condition
from relay.control.documents.apply import Documents
from relay.control.documents.checks import Checks
from relay.control.engine.notifier import Notifier
from relay.control.engine.rollouts import Rollouts
from relay.control.engine.survey import Survey
from relay.control.fleet import views
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.audit import Audit
from relay.control.ledger.revisions import Revisions, Rules
from relay.control.ledger.versions import Versions
from relay.control.packages.blobs import Blobs, open_store
from relay.control.packages.registry import Packages
from relay.control.regions.archive import Configs
from relay.control.regions.publisher import Publisher
from relay.control.review.changes import Changes
from relay.control.review.diff import Diffs
from relay.control.review.preview import Previews
from relay.control.rollouts.model import at_once
from relay.control.storage.database import FILE, Database
from relay.errors import StoreError
from relay.link.protocol import RegionPolicy, SyncSender, Version
from relay.link.server import LinkServer
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import CONFIG, PACKAGES
from relay.policy.strategy import Stage, StrategySpec, SuccessCriteria
from relay.settings.parts import Policies, is_loopback, split_endpoint
from relay.settings.programs import ControlPlaneSettings
from relay.store.blobs import BlobStore

_log = log.get("opamp-relay.control-plane")
SERVER = "opamp-relay"
_LOOK_AGAIN_S = 600.0
_EXPIRE_S = 3600.0
_PROBE_S = 10.0
_LOOK_S = 0.5
"""How often rollouts are looked at."""


class ControlPlane:
    """The global control plane. `start`, then `stop`. Implements `link.server.ControlPlane`."""

    def __init__(self, settings: ControlPlaneSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._servers: list[uvicorn.Server] = []
        self._serving: list[asyncio.Task[None]] = []
        self._started = contextlib.AsyncExitStack()
        self.metrics = ControlPlaneMetrics()
        self.ports: dict[str, int] = {}
        """`link`, `api`, `metrics` → the port that is open."""
        self._look_again: dict[str, float] = {}
        """SHA-256 of a package file that a node could not get → when it is worth another look."""

    async def start(self) -> None:
        """Open the database, then the ports.

        Raises:
            StoreError: the database cannot be used.
            OSError: a port cannot be opened.
        """
        async with contextlib.AsyncExitStack() as started:
            await self._start(started)
            self._started = started.pop_all()

    async def _start(self, started: contextlib.AsyncExitStack) -> None:
        settings, clock = self._settings, self._clock
        database = Database(Path(settings.data_dir) / FILE)
        started.push_async_callback(database.close)
        await database.open()
        self.configs = Configs(database)
        fleet = self.fleet = Fleet(database, self.configs, clock=clock, metrics=self.metrics)
        survey = Survey(fleet, clock=clock, version=lambda region: self.publisher.version(region))
        update = settings.policies.config_update
        revisions = self.revisions = Revisions(
            database,
            rules=_rules(settings.policies),
            targets=survey.targets_of,
        )
        channels = {name: url.get_secret_value() for name, url in settings.notifications.channels.items()}
        checks = Checks(
            facts=fleet.facts,
            regions=fleet.live_regions,
            validation=update.validation,
            channels=channels.keys(),
            require_strategy=update.require_strategy,
        )
        documents = self.documents = Documents(database, revisions, checks, clock=clock)
        await documents.load()
        self._versions = Versions(database)
        data, kept = Path(settings.data_dir), settings.storage.packages
        blobs = Blobs(
            open_store(kept, data / "packages"),
            BlobStore(data / "uploads", kept.max_bytes, keep_free=kept.keep_free),
            max_file_bytes=kept.max_file_bytes,
        )
        packages = self.packages = Packages(
            database, documents, revisions, blobs, clock=clock, max_bytes=kept.max_bytes
        )
        await packages.load(documents.current)
        await revisions.load(documents.current)
        await fleet.load()
        await self.configs.load()
        self.publisher = Publisher(database, revisions, self.configs, clock=clock, packages=packages.resources)
        await self.publisher.load()
        self.condition = Condition(database, fleet, self.publisher, blobs)
        self.rollouts = Rollouts(
            database,
            revisions,
            fleet,
            survey,
            clock=clock,
            metrics=self.metrics,
            catalog=lambda: self.documents.current,
            published=self.publisher.publish,
        )
        self.metrics.rollouts = self.rollouts.states
        self.audit = Audit(database)
        notifier = Notifier(database, channels, clock=clock, metrics=self.metrics)
        started.push_async_callback(self._tasks.close)
        self._tasks.spawn(self.rollouts.run(_LOOK_S), name="rollouts")
        self._tasks.spawn(notifier.run(), name="notifier")
        self.metrics.regions = lambda: views.connected_by_region(fleet)
        self.metrics.skews = lambda: {
            (node.region, node.name): node.behind_ms / 1000 for node in fleet.nodes.values() if node.connected
        }
        self.metrics.agents = lambda: views.agents_by_class(fleet)
        self.metrics.sources["opamp_control_plane_nodes_connected"] = (
            "Nodes whose link is up",
            lambda: sum(node.connected for node in fleet.nodes.values()),
        )
        started.push_async_callback(self._save)
        self._tasks.spawn(self._housekeeping(), name="housekeeping")
        self._tasks.spawn(self._probe(database), name="probe")
        link = LinkServer(self, clock)
        started.push_async_callback(link.stop)
        with opening("server.link.endpoint", "--link", *split_endpoint(settings.server.link.endpoint)):
            await link.start(settings.server.link.endpoint)
        self.ports["link"] = link.port
        started.push_async_callback(self._stop_http)
        await self._start_http()
        _log.info(
            "control_plane_started", ports=self.ports, agents_known=len(fleet.agents), assignments=len(revisions.states)
        )

    async def _start_http(self) -> None:
        settings = self._settings
        endpoint = settings.server.api.endpoint
        api = build_api(
            self.documents,
            self.fleet,
            self.rollouts,
            self.audit,
            Previews(self.publisher, self.fleet),
            self.configs,
            Changes(self.documents, self.rollouts, self.fleet, self._versions),
            self._versions,
            Diffs(self.documents, self.revisions, self.fleet, clock=self._clock),
            self.packages,
            self.publisher,
            self.condition,
            published=self.publisher.publish,
            metrics=self.metrics,
            max_body_bytes=settings.server.limits.max_body_bytes,
            hosts=self._hosts if is_loopback(endpoint) else None,
        )
        for name, key, where in (
            ("api", "server.api.endpoint", endpoint),
            ("metrics", "telemetry.metrics.endpoint", settings.telemetry.metrics.endpoint),
        ):
            host, port = split_endpoint(where)
            config = uvicorn.Config(
                api,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                headers=[("Server", SERVER), ("X-OpAMP-Relay-Version", __version__)],
                timeout_graceful_shutdown=2,
            )
            server = _Server(config)
            task = self._tasks.spawn(server.serve(), name=f"http-{name}")
            while not server.started:
                if task.done():
                    with opening(key, f"--{name}", host, port):
                        raise OSError("cannot be opened")
                await asyncio.sleep(0.005)
            self._servers.append(server)
            self._serving.append(task)
            self.ports[name] = server.servers[0].sockets[0].getsockname()[1]

    async def _probe(self, database: Database) -> None:
        """Look whether the database can be written: nobody may write for hours, and people ask now."""
        said = None
        while True:
            await asyncio.sleep(_PROBE_S)
            await database.probe()
            if database.problem != said:
                said = database.problem
                _log.error("database_degraded", problem=said) if said else _log.info("database_recovered")

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                await self.fleet.save_seen()
                await self.fleet.expire()
                await self._expire_history()
            except StoreError as error:
                _log.error("expiry_failed", error=str(error))

    async def _expire_history(self) -> None:
        before_ms = self._clock.unix_ms() - int(self._settings.retention.history * 1000)
        agents = self.fleet.agents.values()
        used = {a.config.hash for a in agents}
        used |= {s.content_hash for a in agents for s in (*a.config.slots, *a.config.applied)}
        await self.configs.expire(used, before_ms)
        await self.rollouts.expire(before_ms)

    async def _save(self) -> None:
        with contextlib.suppress(StoreError):
            await self.fleet.save_seen()

    def _hosts(self) -> frozenset[str]:
        names = ("127.0.0.1", "localhost", "[::1]")
        return frozenset(f"{name}:{port}" for name in names for port in self.ports.values())

    async def _stop_http(self) -> None:
        for server in self._servers:
            server.should_exit = True
        if self._serving:
            await asyncio.wait(self._serving, timeout=3)
        await self._tasks.close()

    async def stop(self) -> None:
        """Finish the requests, end the streams, close the database."""
        await self._started.aclose()
        _log.info("control_plane_stopped")

    # ---- link.server.ControlPlane

    async def policy(self, region: str) -> RegionPolicy:
        """What a region is to hold."""
        return await self.publisher.policy(region)

    async def behind(self, node: link_pb2.NodeIdentity, held: Version | None) -> Version | None:
        """Our manifest, where a node holds a newer one or one of another database."""
        ours = await self.publisher.behind(node.region, held)
        self.fleet.node_ahead(node, held if ours is not None else None)
        return ours

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` at every change of policy."""
        self.publisher.watch(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self.publisher.unwatch(event)

    def node_synced(self, node: link_pb2.NodeIdentity, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down."""
        self.fleet.node_synced(node, sender, up)

    async def report(self, node: link_pb2.NodeIdentity, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Store a report."""
        ack = await self.fleet.report(node, report)
        for problem in report.status.blob_problems:
            self._look_at(problem.sha256.hex())
        return ack

    def _look_at(self, sha256: str) -> None:
        """A node cannot get a package file: perhaps it is damaged here."""
        now = self._clock.monotonic()
        if now >= self._look_again.get(sha256, -math.inf):
            self._look_again[sha256] = now + _LOOK_AGAIN_S
            self._tasks.spawn(self._verify(sha256), name="verify-blob")

    async def _verify(self, sha256: str) -> None:
        with contextlib.suppress(StoreError):
            await self.packages.blobs.verify(sha256)

    async def node_reporting(self, node: link_pb2.NodeIdentity) -> None:
        """A node's Report stream came up."""
        await self.fleet.node_reporting(node)

    def node_gone(self, node: link_pb2.NodeIdentity) -> None:
        """A node's Report stream has ended."""
        self.fleet.node_gone(node)

    def blob_bytes(self, node: link_pb2.NodeIdentity, sha256: str) -> int | None:
        """Bytes of a file that a node may fetch; None for any other."""
        return self.packages.files_for(node.region).get(sha256)

    def read_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a file from an offset on."""
        return self.packages.blobs.read(sha256, offset)


def _rules(policies: Policies) -> dict[str, Rules]:
    config, packages = policies.config_update, policies.package_update
    common = {"approval_required", "approvals_needed", "four_eyes", "rollback_on_error"}
    config_at_once, packages_at_once = (
        at_once(rules.rollback_error_rate if rules.rollback_on_error else None, rules.rollback_min_agents)
        for rules in (config, packages)
    )
    strategy = packages_at_once
    if packages.canary_percentage:
        stages = [
            Stage(name="canary", percentage=packages.canary_percentage, duration=f"{packages.canary_duration:.0f}s"),
            Stage(name="all", percentage=100),
        ]
        criteria = SuccessCriteria(error_rate_threshold=packages.canary_error_rate)
        strategy = StrategySpec(stages=[s.model_copy(update={"success_criteria": criteria}) for s in stages])
    return {
        CONFIG: Rules(**config.model_dump(include=common), strategy=config_at_once),
        PACKAGES: Rules(
            **packages.model_dump(include=common), strategy=strategy, at_once=not packages.canary_percentage
        ),
    }


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: signals are the program's. A port that is taken ends `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.suppress(SystemExit):
            await super().serve(sockets)

"""Assembles a control plane: the only module that builds its adapters."""

from __future__ import annotations

import contextlib
from pathlib import Path

from relay.aio.clock import Clock, SystemClock
from relay.aio.loop import settle_memory
from relay.aio.ports import explain_bind_errors
from relay.aio.tasks import Tasks
from relay.auth.addresses import AddressRules
from relay.auth.secrets import SecretForm
from relay.control.api.app import Services, build_api, build_probes
from relay.control.api.join import build_join
from relay.control.api.people import People
from relay.control.condition import Condition
from relay.control.credentials import admin_token
from relay.control.credentials.credentials import Credentials
from relay.control.credentials.keys import KeyRegistry
from relay.control.credentials.logins import Logins
from relay.control.credentials.revocations import RevocationRegistry
from relay.control.credentials.sessions import SessionRegistry
from relay.control.credentials.tokens import TokenRegistry
from relay.control.documents.apply import Documents
from relay.control.documents.checks import Checks
from relay.control.engine.actions import Actions
from relay.control.engine.look import Survey
from relay.control.engine.loop import Loop
from relay.control.engine.notifier import Notifier
from relay.control.engine.status import Status
from relay.control.fleet import views
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.targets import Targets
from relay.control.identity import Identities
from relay.control.keys.trust import Trust
from relay.control.ledger.audit import Audit
from relay.control.ledger.begin import Rules, Terms
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.versions import Versions
from relay.control.link import Upstream
from relay.control.packages.blobs import Blobs, open_store
from relay.control.packages.registry import Packages
from relay.control.regions.archive import Archive
from relay.control.regions.publisher import Publisher
from relay.control.review.changes import Changes
from relay.control.review.diff import Diffs
from relay.control.review.preview import Previews
from relay.control.rollouts.rollout import at_once
from relay.control.rollouts.soak import Soak
from relay.control.secrets.vault import Vault
from relay.control.serving import Serving
from relay.control.storage.database import FILE, Database
from relay.control.trust.rotation import CA
from relay.control.upkeep import Upkeep
from relay.link.server import LinkServer
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.strategy import Stage, StrategySpec, SuccessCriteria
from relay.settings.parts import ApiTls, Policies, is_loopback, split_endpoint
from relay.settings.programs import ControlPlaneSettings
from relay.store.blobs import BlobStore
from relay.store.private import make_private

_log = log.get("opamp-relay.control-plane")
_LOOK_S = 0.5
"""How often the loop checks the rollouts."""


class ControlPlane:
    """The global control plane. Call `start`, then `stop`; or only `open`, without ports and background tasks."""

    def __init__(self, settings: ControlPlaneSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._started = contextlib.AsyncExitStack()
        self.metrics = ControlPlaneMetrics()
        self.ports: dict[str, int] = {}
        """`link`, `join`, `api`, `metrics` → port number."""

    async def open(self) -> None:
        """Open the database and load everything.

        Raises:
            StoreError: the database cannot be used.
        """
        async with contextlib.AsyncExitStack() as opened:
            make_private(Path(self._settings.data_dir))
            self.database = Database(Path(self._settings.data_dir) / FILE)
            opened.push_async_callback(self.database.close)
            await self.database.open()
            await self._build(self.database)
            self._started = opened.pop_all()

    async def start(self) -> None:
        """Open the database, then the ports.

        Raises:
            StoreError: the database cannot be used.
            OSError: a port cannot be opened.
        """
        await self.open()
        async with self._started as started:
            await self._start(started)
            self._started = started.pop_all()

    async def _start(self, started: contextlib.AsyncExitStack) -> None:
        settings, clock, metrics = self._settings, self._clock, self.metrics
        started.push_async_callback(self.upkeep.save)
        self._measure()
        link = LinkServer(
            Upstream(self.ledger, self.trust, self.publisher, self.fleet, self.blobs, self._tasks, clock=clock),
            clock,
            self.identities.identify if self.identities is not None else None,
        )
        started.push_async_callback(link.stop)
        with explain_bind_errors("server.link.endpoint", "--link", *split_endpoint(settings.server.link.endpoint)):
            credentials = self.identities.grpc_server() if self.identities is not None else None
            await link.start(settings.server.link.endpoint, credentials)
        self.ports["link"] = link.port
        # Background tasks stop before the links: a region must not hold a rollout because our own shutdown made it dark.
        started.push_async_callback(self._tasks.close)
        channels = {name: url.get_secret_value() for name, url in settings.notifications.channels.items()}
        notifier = Notifier(self.database, channels, clock=clock, metrics=metrics)
        for name, job in (
            ("publisher", self.publisher.run()),
            ("rollouts", self.loop.run(_LOOK_S)),
            ("notifier", notifier.run()),
            ("upkeep", self.upkeep.run()),
            ("probe", self.upkeep.probe()),
            *([("admin-token", self.first_token.run())] if self.people.required else []),
        ):
            self._tasks.spawn(job, name=name)
        serving = Serving(self._tasks)
        started.push_async_callback(serving.stop)
        await self._serve(serving)
        await self._serve_join(serving, link)
        if self.people.required:
            await self.first_token.begin()
        settle_memory()
        _log.info(
            "control_plane_started",
            ports=self.ports,
            agents_known=len(self.fleet.census),
            assignments=len(self.ledger.state.assignments),
        )

    async def _build(self, database: Database) -> None:
        """Build and load the parts, in the order of their dependencies."""
        settings, clock = self._settings, self._clock
        data_dir, storage = Path(settings.data_dir), settings.storage.packages
        self.ledger = Ledger(database, clock=clock)
        await self.ledger.load()
        self.audit, self.versions = Audit(database), Versions(database)
        self.history = History(database, self.ledger)
        vault = Vault(Path(settings.keys_dir), may_create=CA not in self.ledger.state.keys.secrets)
        self.trust = Trust(self.ledger, vault, Path(settings.keys_dir), clock=clock)
        await self.trust.load()
        self.archive = Archive(database)
        await self.archive.load()
        self.publisher = Publisher(database, self.ledger, self.archive, self.trust, clock=clock)
        await self.publisher.load()
        self.fleet = Fleet(database, self.ledger, self.archive, clock=clock, metrics=self.metrics)
        await self.fleet.load()
        census = self.fleet.census
        targets = Targets(census, clock=clock)
        terms = Terms(_rules(settings.policies), targets.of)
        checks = Checks(
            known=census,
            validation=settings.policies.config_update.validation,
            channels=settings.notifications.channels.keys(),
            require_strategy=settings.policies.config_update.require_strategy,
        )
        self.documents = Documents(self.ledger, checks, terms)
        self.blobs = Blobs(
            open_store(storage, data_dir / "packages"),
            BlobStore(data_dir / "uploads", storage.max_bytes, keep_free=storage.keep_free),
            max_file_bytes=storage.max_file_bytes,
        )
        self.packages = Packages(self.ledger, terms, self.blobs, clock=clock, max_bytes=storage.max_bytes)
        soak = Soak()
        survey = Survey(census, targets, self.publisher, clock=clock)
        self.loop = Loop(self.ledger, survey, soak, clock=clock, metrics=self.metrics)
        self.actions = Actions(self.ledger, self.history, survey, terms, metrics=self.metrics)
        self.status = Status(self.ledger, self.history, survey, soak, clock=clock)
        self.diffs = Diffs(self.ledger, checks, terms, self.fleet, clock=clock)
        self.changes = Changes(self.ledger, self.history, self.fleet, self.versions)
        rules, admin = settings.auth.api_key, settings.admin.auth
        self.credentials = Credentials(
            KeyRegistry(
                self.ledger,
                SecretForm(rules.prefix, rules.length),
                expires_s=rules.expiration,
                labels_of=lambda name: [agent.facts.labels for agent in census.by_id(name)],
            ),
            TokenRegistry(self.ledger),
            RevocationRegistry(self.ledger, self.fleet, self.publisher, clock=clock),
            SessionRegistry(self.ledger, admin.session if admin is not None else 0.0),
        )
        self.logins = Logins(admin.oidc, clock=clock) if admin is not None and admin.oidc is not None else None
        self.people = People(
            self.ledger,
            kind=admin.type if admin is not None else "none",
            issuer=admin.oidc.issuer if admin is not None and admin.oidc is not None else "",
            addresses=AddressRules(map(str, admin.allow if admin is not None else ())),
            clock=clock,
            metrics=self.metrics,
        )
        self.first_token = admin_token.AdminToken(
            data_dir / admin_token.FILE, database, self.ledger, self.credentials.tokens, clock=clock
        )
        self.identities: Identities | None = None
        if settings.link_has_tls:
            self.identities = Identities(settings, self.ledger, self.trust, self.fleet, clock=clock)
            await self.identities.load()
        self.condition = Condition(
            database, self.fleet, self.ledger, self.publisher, self.blobs, self.trust, self.identities
        )
        self.upkeep = Upkeep(
            database,
            self.fleet,
            self.archive,
            self.history,
            self.credentials,
            self.trust,
            clock=clock,
            history_s=settings.retention.history,
        )

    def _measure(self) -> None:
        metrics, census = self.metrics, self.fleet.census
        metrics.rollouts = self.status.counts
        metrics.regions = lambda: views.connected_by_region(census)
        metrics.skews = lambda: {
            (node.region, node.name): node.behind_ms / 1000 for node in census.nodes.values() if node.connected
        }
        metrics.agents = lambda: views.agents_by_class(census)
        warning_ms = int(self._settings.auth.api_key.rotation_warning * 1000)
        metrics.sources["opamp_control_plane_api_keys_expiring"] = (
            "API keys that end soon and were not rotated",
            lambda: self.credentials.keys.expiring(self._clock.unix_ms(), warning_ms),
        )
        metrics.sources["opamp_control_plane_nodes_connected"] = (
            "Nodes whose link is up",
            lambda: sum(node.connected for node in census.nodes.values()),
        )

    async def _serve(self, serving: Serving) -> None:
        settings = self._settings
        endpoint = settings.server.api.endpoint
        services = Services(
            ledger=self.ledger,
            audit=self.audit,
            versions=self.versions,
            history=self.history,
            archive=self.archive,
            fleet=self.fleet,
            documents=self.documents,
            packages=self.packages,
            status=self.status,
            actions=self.actions,
            diffs=self.diffs,
            changes=self.changes,
            previews=Previews(self.publisher, self.fleet),
            condition=self.condition,
            metrics=self.metrics,
            people=self.people,
            credentials=self.credentials,
            identities=self.identities,
            trust=self.trust,
            logins=self.logins,
        )
        own_host = is_loopback(endpoint) and not self.people.required
        api = self.api = build_api(services, max_body_bytes=settings.server.limits.max_body_bytes, own_host=own_host)
        self.ports["api"] = await serving.open(api, "api", "server.api.endpoint", endpoint, tls=settings.server.api.tls)
        probes = build_probes(self.condition, self.metrics)
        self.ports["metrics"] = await serving.open(
            probes, "metrics", "telemetry.metrics.endpoint", settings.telemetry.metrics.endpoint
        )

    async def _serve_join(self, serving: Serving, link: LinkServer) -> None:
        """Open the port where nodes join, and tell where it is."""
        identities, endpoint = self.identities, self._settings.server.join.endpoint
        if identities is None:
            return
        identities.listening("link", self.ports["link"])
        if not self._settings.nodes_join:
            self._tasks.spawn(identities.run(link, lambda: None), name="identities")
            return
        join = build_join(identities.trust, identities.registry, self._clock)
        tls = ApiTls(enabled=True, cert_file=str(identities.cert_file), key_file=str(identities.key_file))
        self.ports["join"] = await serving.open(join, "join", "server.join.endpoint", endpoint, tls=tls)
        identities.listening("join", self.ports["join"])
        self._tasks.spawn(identities.run(link, lambda: serving.reload("join")), name="identities")

    async def stop(self) -> None:
        """Finish open requests, end the streams and close the database."""
        await self._started.aclose()
        _log.info("control_plane_stopped")


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

"""Assembles a node. This is the only place in the program that creates adapters."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from pathlib import Path

import grpc

from relay import __version__
from relay.aio.clock import Clock, SystemClock
from relay.aio.loop import settle_memory
from relay.aio.tasks import Tasks
from relay.auth.key_sets import KeyChain
from relay.auth.tokens import VerificationKey
from relay.errors import StoreError
from relay.fleet.cohort import Cohorts
from relay.link.blobs import BlobSource
from relay.link.client import Downward, LinkClient, Upward
from relay.link.health import LinkHealth
from relay.link.protocol.peer import Peer
from relay.link.protocol.reports import ReportSender
from relay.node.admin import Admin
from relay.node.credentials import Credentials
from relay.node.drain import drain
from relay.node.freshness import Freshness
from relay.node.hub import Hub
from relay.node.identity import Identity, IdentityFolder, read_root
from relay.node.joining import Renewal
from relay.node.jwks import FILE, KeySetSource
from relay.node.packages.cache import PackageCache, PackageRules
from relay.node.policy import PolicyHolder
from relay.node.registry import Registry
from relay.node.reports import Reports
from relay.node.serving import Serving
from relay.node.status import Condition, Parts, Status
from relay.node.upkeep import Upkeep
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.policy.access import Access
from relay.policy.snapshot import RENDERERS
from relay.settings.programs import NodeSettings
from relay.store.blobs import BlobStore
from relay.store.local import LocalStore
from relay.store.private import make_private

_log = log.get("opamp-relay.node")
_SELF_BUCKET = "self"
"""What the node stores about itself."""
_GOODBYE_S = 3.0
"""How long the last report may take."""


def _nothing() -> None:
    """Nobody needs to know."""


class Node:
    """A regional relay node. Call `start`, then `stop`. To start again, create a new object.

    Args:
        identity: by which its control plane knows it; None for a link without TLS.
    """

    def __init__(self, settings: NodeSettings, clock: Clock | None = None, *, identity: Identity | None = None) -> None:
        self._settings = settings
        self._identity = self._dialled = identity
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._serves = False
        """Whether credentials that change concern anybody yet."""
        self._started = contextlib.AsyncExitStack()
        self.metrics = NodeMetrics(settings.node.region)
        self.ports: dict[str, int] = {}
        """`websocket`, `http`, `grpc`, `metrics` → the open port."""

    async def start(self) -> None:
        """Open the store, then the ports, then the link. Agents are served from the stored policy at once.

        Raises:
            StoreError: the data folder cannot be used.
            OSError: a port cannot be opened.
        """
        async with contextlib.AsyncExitStack() as started:
            await self._start(started)
            self._started = started.pop_all()

    async def _start(self, started: contextlib.AsyncExitStack) -> None:
        settings, clock = self._settings, self._clock
        self._open_store(started)
        self._build(started)
        self.policy.protect(self.registry, math.inf)
        admin = Admin(
            self.registry,
            self.metrics,
            self.status.condition,
            self.cohorts,
            lambda: self.packages.problems,
            lambda: self.serving.authenticator.rejections,
            region=settings.node.region,
            node=settings.node.name,
            trusted=settings.trusted_attributes,
        )
        await self.serving.open(started, self.hub, admin, self.packages.find)
        self.ports = self.serving.ports
        self.status.listening = True
        started.push_async_callback(self._tasks.close)
        limits = settings.server.limits
        self.upkeep = Upkeep(
            self.hub,
            self.registry,
            self.cohorts,
            self.policy,
            self.freshness,
            self.packages,
            self.store,
            self.sender,
            wake=self._wake,
            connections=lambda: self.serving.connections,
            clock=clock,
            metrics=self.metrics,
            record_ttl_s=settings.node.record_ttl,
            goodbye_ttl_s=settings.node.goodbye_ttl,
            ping_s=limits.ping_interval,
            idle_s=limits.idle_timeout,
        )
        for name, work in (
            ("link", self._link.run()),
            ("upkeep", self.upkeep.run()),
            ("ping", self.upkeep.ping()),
            ("protect", self.upkeep.protect()),
            ("credentials", self.serving.watch_credentials()),
            *(
                [("identity", self.renewal.run()), ("trust", self.renewal.follow(self._is_cut_off))]
                if self.renewal is not None
                else []
            ),
            *([("jwks", self.key_set.run())] if self.key_set is not None else []),
        ):
            self._tasks.spawn(work, name=name)
        settle_memory()
        _log.info(
            "node_started",
            region=settings.node.region,
            node=settings.node.name,
            ports=self.ports,
            agents_known=len(self.registry),
            manifest=self.policy.receiver.version,
        )

    def _open_store(self, started: contextlib.AsyncExitStack) -> None:
        make_private(Path(self._settings.node.data_dir))
        store = self.store = LocalStore(Path(self._settings.node.data_dir) / "node.sqlite3")
        started.push_async_callback(self._close_store)
        if store.problem is not None:
            _log.error("store_degraded", problem=store.problem, consequence="starting with the readable part")
        if store.corrupt_copy is not None:
            _log.error(
                "store_corrupt",
                set_aside=str(store.corrupt_copy),
                consequence="starting empty; everything will be fetched again",
            )
        # The data of another region are meaningless here: both its policy and its sequence numbers.
        region, stored_region = self._settings.node.region, store.get(_SELF_BUCKET, b"region")
        if stored_region is not None and stored_region != region.encode():
            before = stored_region.decode("utf-8", "replace")
            _log.error(
                "region_changed",
                before=before,
                now=region,
                consequence="the policy and agents of the old region are forgotten",
            )
            store.clear()
        store.put(_SELF_BUCKET, b"region", region.encode())

    def _installation(self) -> str:
        """What tells a restart of this node from another process under its name."""
        stored = self.store.get(_SELF_BUCKET, b"installation")
        if stored is None:
            stored = uuid.uuid4().hex.encode()
            self.store.put(_SELF_BUCKET, b"installation", stored)
        return stored.decode("ascii", "replace")

    def _build(self, started: contextlib.AsyncExitStack) -> None:
        """Create the parts, lower layers first."""
        settings, clock, metrics = self._settings, self._clock, self.metrics
        region, limits, above = settings.node.region, settings.server.limits, settings.control_plane
        batching = settings.server.batching
        trusted, incarnation = settings.trusted_attributes, uuid.uuid4().hex
        peer = self.peer = Peer(region, settings.node.name, incarnation, __version__, trusted, self._installation())
        self.freshness = Freshness(
            clock=clock, max_staleness_s=above.max_staleness or None if above.on_stale == "hold" else None
        )
        self.link = LinkHealth(clock)
        sender = self.sender = ReportSender(max_agents=batching.max_batch_size)
        self.cohorts = Cohorts(region, settings.trusted_attributes)
        self.registry = Registry(self.store, sender, clock=clock, wake=self._wake)
        self.renewal = self._make_renewal()
        self.blob_source = BlobSource(above.endpoint, peer, self._channel)
        started.push_async_callback(self.blob_source.close)
        self.packages = self._make_packages()
        started.push_async_callback(self.packages.close)
        self.credentials = Credentials(settings)
        chain, root = self._trusted()
        self.policy = PolicyHolder(
            region,
            self.store,
            self.cohorts,
            changed=self._policy_changed,
            admit=self._access_changed,
            chain=chain,
            root=root,
            trusted=self._key_sets_changed,
        )
        self.credentials.admit(self.policy.access)
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
            may_offer=self.freshness.may_offer,
            packages=self.packages,
        )
        started.push_async_callback(self._save)
        started.push_async_callback(self.hub.close)
        self.key_set = self._make_key_set()
        self.serving = Serving(
            settings,
            self.credentials,
            self.policy,
            unknown_key=self.key_set.want if self.key_set is not None else _nothing,
            clock=clock,
            metrics=metrics,
        )
        self._serves = True
        parts = Parts(
            store=self.store,
            policy=self.policy,
            freshness=self.freshness,
            packages=self.packages,
            registry=self.registry,
            hub=self.hub,
            sender=sender,
            cohorts=self.cohorts,
            link=self.link,
            places=self.serving.places,
            proxies=self.serving.proxies,
            credentials=self.credentials,
            renewal=self.renewal,
            key_set=self.key_set,
        )
        self.status = Status(
            parts,
            region=region,
            node=settings.node.name,
            max_agents=limits.max_agents,
            public_url=bool(settings.packages.public_url),
            clock=clock,
        )
        metrics.sources.update(self.status.gauges())
        metrics.certificates = self._certificate_ends
        metrics.reload_failures = lambda: self.credentials.failures
        self.reports = Reports(sender, self.registry, self.status)
        self._link = LinkClient(
            above.endpoint,
            peer,
            Downward(self.policy.receiver, RENDERERS, self.policy.put_in_force, self._policy_confirmed),
            Upward(sender, self.reports.next, self.hub.release, batching.timeout if batching.enabled else 0.0),
            self.link,
            clock=clock,
            metrics=metrics,
            credentials=self._dial,
        )

    def _make_key_set(self) -> KeySetSource | None:
        rules = self._settings.auth.token_rules if self._settings.auth is not None else None
        if rules is None or not rules.jwks_url:
            return None
        file = Path(self._settings.node.data_dir) / FILE
        source = KeySetSource(rules.jwks_url, file, clock=self._clock, changed=self._key_set_changed)
        self.metrics.sources["opamp_relay_jwks_age_seconds"] = (
            "Seconds since the issuer's key set was fetched",
            lambda: source.age_s,
        )
        source.load()
        return source

    def _key_set_changed(self, keys: tuple[VerificationKey, ...]) -> None:
        self.credentials.use_key_set(keys)
        if self._serves:
            self.serving.credentials_changed()

    def _make_renewal(self) -> Renewal | None:
        settings, endpoint = self._settings, self._settings.control_plane.join_endpoint
        if self._identity is None or settings.control_plane.cert_file or not endpoint:
            return None
        folder = IdentityFolder(settings.identity_dir)
        return Renewal(folder, self._identity, endpoint, clock=self._clock, renewed=self._identity_renewed)

    def _trusted(self) -> tuple[KeyChain | None, str]:
        """(key sets that this node trusts already, id of the root that must have signed those that it has not seen)."""
        above = self._settings.control_plane
        if self._identity is None:
            return None, ""
        if above.cert_file:
            return None, read_root(Path(above.root_file)) if above.root_file else ""
        trusted = IdentityFolder(self._settings.identity_dir).trusted()
        return trusted.chain, trusted.root

    def _certificate_ends(self) -> dict[str, float]:
        ends = {"agents": self.credentials.current.ends_at}
        ends["link"] = self._identity.node.not_after if self._identity is not None else None
        now = self._clock.unix_ms() / 1000
        return {use: ends_at - now for use, ends_at in ends.items() if ends_at is not None}

    def _channel(self) -> grpc.ChannelCredentials | None:
        return self._identity.channel() if self._identity is not None else None

    def _dial(self) -> grpc.ChannelCredentials | None:
        self._dialled = self._identity
        return self._channel()

    def _is_cut_off(self) -> bool:
        """Whether the link is down. A link that trusts CAs of the past is dialled again."""
        if self.link.connected:
            return False
        if self._dialled is not self._identity:
            self._link.redial()
        return True

    def _identity_renewed(self, identity: Identity) -> None:
        is_newer = self._identity is None or identity.certificate != self._identity.certificate
        self._identity = identity
        if is_newer or not self.link.connected:
            self._link.redial()
            self._tasks.spawn(self.blob_source.close(), name="blob-redial")

    def _make_packages(self) -> PackageCache:
        settings = self._settings.packages
        folder = settings.data_dir or str(Path(self._settings.node.data_dir) / "packages")
        return PackageCache(
            BlobStore(Path(folder), settings.max_bytes, keep_free=settings.keep_free),
            self.blob_source.fetch,
            PackageRules(settings.public_url, settings.require_signature, settings.fetches),
            clock=self._clock,
            metrics=self.metrics,
            wanted=self.cohorts.package_offers,
            ready=self._package_arrived,
            damaged=lambda sha256: self.hub.package_damaged(sha256),
        )

    # ---- callbacks of the parts

    def _wake(self) -> None:
        if self.status.listening:
            self._link.wake()

    def _policy_changed(self, answers_changed: bool) -> None:
        self.sender.send_status = True
        self._wake()
        self.packages.policy_changed(self.cohorts.snapshot)
        if answers_changed:
            self.hub.policy_changed()

    def _access_changed(self, access: Access) -> None:
        self.credentials.admit(access)
        self.serving.credentials_changed()

    def _key_sets_changed(self, chain: KeyChain) -> None:
        if self.renewal is not None:
            self.renewal.trust(chain)

    def _policy_confirmed(self, said_ms: int) -> None:
        if self.freshness.confirm(said_ms):
            self.hub.policy_changed()

    def _package_arrived(self) -> None:
        self.sender.send_status = True
        self._wake()
        self.hub.policy_changed()

    def condition(self) -> Condition:
        """The node's condition, for probes and people."""
        return self.status.condition()

    # ---- the end

    async def stop(self) -> bool:
        """Drain the connections, then write everything, then close.

        Returns:
            Whether everything was written, so that no answered message is lost.
        """
        self.status.draining = True
        self.serving.refuse_new()
        connections = self.serving.connections
        _log.info("node_draining", connections=len(connections), seconds=self._settings.drain.seconds)
        await drain(connections, self._settings.drain.seconds, self._clock)
        await self._say_goodbye()
        self.status.listening = False
        await self._started.aclose()
        if self.store.lost:
            _log.error("records_lost", count=self.store.lost, problem=self.store.problem)
        _log.info("node_stopped")
        return not self.store.lost

    async def _say_goodbye(self) -> None:
        """Send the last changes to the control plane, and tell it not to wait for this node."""
        if not self.link.connected:
            return
        self.registry.flush()
        self.status.leaving = self.sender.send_status = True
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._link.flush()
        except TimeoutError:
            _log.warning("goodbye_not_heard", waiting=len(self.sender))

    async def _save(self) -> None:
        self.registry.save_all()
        with contextlib.suppress(StoreError):
            await self.store.flush()

    async def _close_store(self) -> None:
        await asyncio.to_thread(self.store.close)

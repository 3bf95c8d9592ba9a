"""The periodic work of a node: it looks after its region, its connections and its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from relay.aio.clock import Clock
from relay.errors import StoreError
from relay.fleet.cohort import Cohorts
from relay.link.protocol.reports import ReportSender
from relay.node.freshness import Freshness
from relay.node.hub import Hub
from relay.node.packages.cache import PackageCache
from relay.node.policy import PolicyHolder
from relay.node.registry import EFFECTIVE_BUCKET, Registry
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.store.local import LocalStore
from relay.transport.ports import Connection

_log = log.get("opamp-relay.node")
_SWEEP_S = 10.0
_SLICE = 200
_PROTECT_S = 1.0
_EXPIRE_S = 3600.0
_VERIFY_S = 60.0
"""How often both ends compare their sums even if nothing has changed."""


class Upkeep:
    """Each of `protect`, `ping` and `run` runs until it is cancelled.

    Args:
        wake: tells the link that there is something to report.
        connections: all connections that allow pushes, also those on which no agent has spoken yet.
    """

    def __init__(
        self,
        hub: Hub,
        registry: Registry,
        cohorts: Cohorts,
        policy: PolicyHolder,
        freshness: Freshness,
        packages: PackageCache,
        store: LocalStore,
        sender: ReportSender,
        *,
        wake: Callable[[], None],
        connections: Callable[[], Iterable[Connection]],
        clock: Clock,
        metrics: NodeMetrics,
        record_ttl_s: float,
        goodbye_ttl_s: float,
        ping_s: float,
        idle_s: float,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._cohorts = cohorts
        self._policy = policy
        self._freshness = freshness
        self._packages = packages
        self._store = store
        self._sender = sender
        self._wake = wake
        self._connections = connections
        self._clock = clock
        self._metrics = metrics
        self._record_ttl_s = record_ttl_s
        self._goodbye_ttl_s = goodbye_ttl_s
        self._ping_s = ping_s
        self._idle_s = idle_s
        self._logged_problem: str | None = None

    async def protect(self) -> None:
        """Protect the region every second, with or without a link, and report: rollout gates need fresh data."""
        while True:
            await asyncio.sleep(_PROTECT_S)
            self._hub.settle()
            self._sender.send_status = True
            self._wake()
            if self._policy.protect(self._registry, self._freshness.age_or_unknown_s()):
                self._hub.policy_changed()

    async def ping(self) -> None:
        """Keep silent connections alive through proxies, and close those that do not answer."""
        while True:
            await asyncio.sleep(min(self._ping_s / 10, _SWEEP_S))
            for i, connection in enumerate(self._connections()):
                if i % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                connection.probe(self._clock.monotonic(), self._ping_s, self._idle_s)

    async def run(self) -> None:
        """Forget what is old, and log changes in the disk's health."""
        expire_at = self._clock.monotonic() + _EXPIRE_S
        verify_at = self._clock.monotonic() + _VERIFY_S
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._hub.sweep()
            self._registry.forget_goodbyes(self._goodbye_ttl_s)
            self._packages.tick()
            now = self._clock.monotonic()
            self._sender.send_status = True
            if now >= verify_at:
                verify_at = now + _VERIFY_S
                self._sender.verify = True
            self._wake()
            self._check_store()
            if now >= expire_at:
                expire_at = now + _EXPIRE_S
                await self.expire()

    def _check_store(self) -> None:
        self._metrics.store_failures = self._store.failures
        if self._store.problem != self._logged_problem:
            self._logged_problem = self._store.problem
            if self._logged_problem:
                _log.error("store_degraded", problem=self._logged_problem)
            else:
                _log.info("store_recovered")

    async def expire(self) -> None:
        """Forget agents that have been away for too long, and the data that only they used."""
        try:
            digests = await asyncio.to_thread(self._store.keys, EFFECTIVE_BUCKET)
        except StoreError as error:
            _log.error("expiry_failed", error=str(error))
        else:
            self._registry.expire(self._record_ttl_s, digests)
            self._cohorts.drop_unused(self._registry)
            self._store.damaged.clear()

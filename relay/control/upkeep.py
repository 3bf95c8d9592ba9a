"""Periodic work: probe the database, expire old data."""

from __future__ import annotations

import asyncio
import contextlib

from relay.aio.clock import Clock
from relay.control.credentials.credentials import Credentials
from relay.control.fleet.fleet import Fleet
from relay.control.keys.trust import Trust
from relay.control.ledger.history import History
from relay.control.regions.archive import Archive
from relay.control.storage.database import Database
from relay.errors import StoreError
from relay.observe import log

_log = log.get("opamp-relay.control-plane")
_EXPIRE_S = 3600.0
_PROBE_S = 10.0


class Upkeep:
    """Runs the periodic work.

    Args:
        history_s: how long finished rollouts and published contents are kept.
    """

    def __init__(
        self,
        database: Database,
        fleet: Fleet,
        archive: Archive,
        history: History,
        credentials: Credentials,
        trust: Trust,
        *,
        clock: Clock,
        history_s: float,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._archive = archive
        self._history = history
        self._credentials = credentials
        self._trust = trust
        self._clock = clock
        self._history_s = history_s

    async def probe(self) -> None:
        """Check that the database is writable, until cancelled. Hours can pass between writes; health must be known now."""
        logged = None
        while True:
            await asyncio.sleep(_PROBE_S)
            await self._database.probe()
            if self._database.problem != logged:
                logged = self._database.problem
                _log.error("database_degraded", problem=logged) if logged else _log.info("database_recovered")

    async def run(self) -> None:
        """Expire old data, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                await self._fleet.save_seen()
                await self._fleet.expire()
                await self.expire_history()
                await self._credentials.forget_expired(self._clock.unix_ms())
                await self._trust.forget_former(self._clock.unix_ms())
            except StoreError as error:
                _log.error("expiry_failed", error=str(error))

    async def expire_history(self) -> None:
        """Delete rollouts and contents that are unused and older than the retention setting.

        Raises:
            StoreError: the database failed.
        """
        before_ms = self._clock.unix_ms() - int(self._history_s * 1000)
        await self._archive.expire(await asyncio.to_thread(self._used), before_ms)
        await self._history.expire(before_ms)

    def _used(self) -> set[bytes]:
        """Hashes of the configs and contents that agents were offered or have applied."""
        offerings = {agent.config for agent in list(self._fleet.census.agents.values())}
        used = {offering.hash for offering in offerings}
        return used | {s.content_hash for offering in offerings for s in (*offering.slots, *offering.applied)}

    async def save(self) -> None:
        """At shutdown: store when each node was last seen, if the database allows it."""
        with contextlib.suppress(StoreError):
            await self._fleet.save_seen()

"""What has to be done now and then: the database tried, old things forgotten."""

from __future__ import annotations

import asyncio
import contextlib

from relay.aio.clock import Clock
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.history import History
from relay.control.regions.archive import Archive
from relay.control.storage.database import Database
from relay.errors import StoreError
from relay.observe import log

_log = log.get("opamp-relay.control-plane")
_EXPIRE_S = 3600.0
_PROBE_S = 10.0


class Upkeep:
    """Does it.

    Args:
        history_s: how long rollouts that are over, and what agents were given, are kept.
    """

    def __init__(
        self, database: Database, fleet: Fleet, archive: Archive, history: History, *, clock: Clock, history_s: float
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._archive = archive
        self._history = history
        self._clock = clock
        self._history_s = history_s

    async def probe(self) -> None:
        """Look whether the database can be written, until cancelled: nobody may write for hours, and people ask now."""
        said = None
        while True:
            await asyncio.sleep(_PROBE_S)
            await self._database.probe()
            if self._database.problem != said:
                said = self._database.problem
                _log.error("database_degraded", problem=said) if said else _log.info("database_recovered")

    async def run(self) -> None:
        """Forget what is old, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRE_S)
            try:
                await self._fleet.save_seen()
                await self._fleet.expire()
                await self.expire_history()
            except StoreError as error:
                _log.error("expiry_failed", error=str(error))

    async def expire_history(self) -> None:
        """Forget rollouts and contents that are older than the settings say, and that nobody uses.

        Raises:
            StoreError: the database failed.
        """
        before_ms = self._clock.unix_ms() - int(self._history_s * 1000)
        await self._archive.expire(await asyncio.to_thread(self._used), before_ms)
        await self._history.expire(before_ms)

    def _used(self) -> set[bytes]:
        """Hashes of what agents were offered, or have."""
        offerings = {agent.config for agent in list(self._fleet.census.agents.values())}
        used = {offering.hash for offering in offerings}
        return used | {s.content_hash for offering in offerings for s in (*offering.slots, *offering.applied)}

    async def save(self) -> None:
        """At the end: write when each node was last seen, if that is possible."""
        with contextlib.suppress(StoreError):
            await self._fleet.save_seen()

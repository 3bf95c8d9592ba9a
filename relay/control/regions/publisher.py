"""What each region is to hold, under a manifest number that never goes back.

Watches the ledger. A number is written before anybody is sent it: after a crash the next one is higher, whatever nodes have
seen.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.aio.backoff import Backoff
from relay.aio.clock import Clock
from relay.aio.watchers import Watchers
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.regions.archive import Archive
from relay.control.regions.keys import master_key
from relay.control.regions.resources import resources
from relay.control.rollouts.assignment import AssignmentState
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.control.storage.sealed import read_truth
from relay.documents import canonical_json
from relay.errors import StoreError
from relay.ids import sha256
from relay.link.protocol import RegionPolicy, Version
from relay.observe import log
from relay.policy.published import Published
from relay.policy.snapshot import build

_log = log.get("opamp-relay.publish")
_RETRY_S = 1.0


class Publisher:
    """The policies of all regions that ever asked for one. `load` first, then `run`."""

    def __init__(self, database: Database, ledger: Ledger, archive: Archive, *, clock: Clock) -> None:
        self._database = database
        self._ledger = ledger
        self._archive = archive
        self._clock = clock
        self._master = b""
        self._policies: dict[str, RegionPolicy] = {}
        self._digests: dict[str, bytes] = {}
        self._editions: dict[str, int] = {}
        """Region → edition of the ledger that its policy is of."""
        self._states: dict[str, State] = {}
        """Region → state that its policy is of."""
        self.problems: dict[str, str] = {}
        """Region → why what it is to hold could not be published."""
        self._watchers = Watchers()
        self._publishing = asyncio.Lock()

    async def load(self) -> None:
        """Read the regions' secret, and look whether what was published is whole.

        Raises:
            StoreError: something of it is damaged.
        """
        self._master = await master_key(self._database)
        async with self._database.read() as connection:
            for row in await read_truth(connection, schema.manifests):
                if json.loads(row.body)["region"] != row.region:
                    raise StoreError(f"table manifests: {row.region} is damaged: restore a backup")

    async def run(self) -> None:
        """After every change bring all regions up to date and wake the watchers, until cancelled."""
        changed = asyncio.Event()
        backoff = Backoff(first_s=_RETRY_S, most_s=30.0, chance=random.random)
        self._ledger.watch(changed)
        try:
            while True:
                await changed.wait()
                changed.clear()
                await self.publish()
                if self.problems:
                    await asyncio.sleep(backoff.next_delay_s())
                    changed.set()
                else:
                    backoff.reset()
        finally:
            self._ledger.unwatch(changed)

    async def publish(self) -> None:
        """Bring every region that is known up to date and wake the watchers. One that cannot be stops no other one."""
        for region in list(self._policies):
            async with self._publishing:
                await self._tried(region, self._publish)
        self._watchers.wake()
        # After the nodes have it: what can be looked up later must not hold up what is going out now.
        for region in list(self._policies):
            if region not in self.problems:
                async with self._publishing:
                    await self._tried(region, self._keep)

    async def _tried(self, region: str, work: Callable[[str], Awaitable[None]]) -> None:
        try:
            await work(region)
        except Exception as error:  # whatever it is, all else must go out, and this be tried again
            if self.problems.get(region) != str(error):
                _log.error("policy_not_published", region=region, error=str(error), kind=type(error).__name__)
            self.problems[region] = str(error)
        else:
            self.problems.pop(region, None)

    async def policy(self, region: str) -> RegionPolicy:
        """The policy of a region, of the state that is in force; a region that is new gets its first manifest.

        Raises:
            StoreError: its manifest could not be written.
        """
        if not self._is_current(region):
            async with self._publishing:
                is_new = region not in self._policies
                await self._publish(region)
                if is_new:
                    await self._keep(region)
        return self._policies[region]

    def _is_current(self, region: str) -> bool:
        return self._editions.get(region) == self._ledger.edition

    async def _keep(self, region: str) -> None:
        await self._archive.keep(build(self._policies[region].resources), self._clock.unix_ms())

    async def _publish(self, region: str) -> None:
        if self._is_current(region):
            return
        edition, state = self._ledger.edition, self._ledger.state
        held = resources(state, region, self._master)
        digest = sha256(canonical_json({name: sha256(payload).hex() for name, payload in held.items()}))
        published = self._policies.get(region)
        if self._digests.get(region) != digest or published is None or published.version[0] < state.epoch:
            epoch, number = await self._number(region, digest, state.epoch)
            # The state first: who looks from another thread finds one with each policy.
            self._states[region], self._policies[region] = state, RegionPolicy((epoch, number), held)
            self._digests[region] = digest
            _log.info("policy_published", region=region, manifest=(epoch, number), resources=len(held))
        self._editions[region], self._states[region] = edition, state

    async def _number(self, region: str, digest: bytes, least_epoch: int) -> Version:
        """The number of what a region is to hold: the one that it has, or a new one."""
        async with self._database.write() as connection:
            known = await _manifest(connection, region)
            epoch, number = (known["epoch"], known["number"]) if known is not None else (least_epoch, 0)
            if known is None or known["digest"] != digest.hex() or epoch < least_epoch:
                epoch, number = max(epoch, least_epoch), number + 1
                body = json.dumps({"region": region, "epoch": epoch, "number": number, "digest": digest.hex()})
                await replace(connection, schema.manifests, [{"region": region, "body": body}])
        return epoch, number

    def has(self, region: str, version: Version, name: str) -> bool:
        """Whether who holds a version of a region's policy has what is in force of one assignment.

        What else has changed since it was published is of no account. True of a region that never asked.
        """
        policy = self._policies.get(region)
        if policy is None:
            return True
        held, wanted = (state.assignments.get(name) for state in (self._states[region], self._ledger.state))
        return policy.version == version and (held is wanted or _looks(held, region) == _looks(wanted, region))

    async def behind(self, region: str, held: Version | None) -> Version | None:
        """What we have for a region, where a node holds something newer, or of another database; None where not."""
        if held is None:
            return None
        async with self._database.read() as connection:
            known = await _manifest(connection, region)
        # A region that never was published to has the number 0: a node that holds anything of this epoch is ahead.
        epoch = self._ledger.state.epoch
        ours = (max(known["epoch"], epoch), known["number"]) if known is not None else (epoch, 0)
        return ours if held > ours else None

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` after every change of a policy."""
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._watchers.discard(event)


def _looks(assignment: AssignmentState | None, region: str) -> Published | None:
    return assignment.for_region(region) if assignment is not None else None


async def _manifest(connection: AsyncConnection, region: str) -> dict[str, Any] | None:
    query = sa.select(schema.manifests.c.body).where(schema.manifests.c.region == region)
    body = (await connection.execute(query)).scalar_one_or_none()
    return None if body is None else dict(json.loads(body))

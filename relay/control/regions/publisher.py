"""Publishes each region's policy under a manifest number that never decreases.

Watches the ledger. A number is stored before it is sent, so that after a crash the next one is higher than any that nodes
have seen.
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
from relay.control.keys.trust import Trust
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.regions.archive import Archive
from relay.control.regions.resources import AccessResources, resources
from relay.control.rollouts.assignment import AssignmentState
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.control.storage.sealed import read_undamaged
from relay.documents import canonical_json
from relay.errors import StoreError
from relay.ids import sha256
from relay.link.protocol.peer import Version
from relay.link.protocol.sender import RegionPolicy
from relay.link.protocol.signatures import manifest_payload
from relay.observe import log
from relay.policy.published import Published
from relay.policy.snapshot import build

_log = log.get("opamp-relay.publish")
_RETRY_S = 1.0


class Publisher:
    """Holds the policy of every region that has asked for one. Call `load`, then `run`."""

    def __init__(self, database: Database, ledger: Ledger, archive: Archive, trust: Trust, *, clock: Clock) -> None:
        self._database = database
        self._ledger = ledger
        self._archive = archive
        self._trust = trust
        self._clock = clock
        self._access = AccessResources()
        self._policies: dict[str, RegionPolicy] = {}
        self._digests: dict[str, bytes] = {}
        self._editions: dict[str, int] = {}
        """Region → the ledger's edition that its policy was built from."""
        self._states: dict[str, State] = {}
        """Region → the state that its policy was built from."""
        self.problems: dict[str, str] = {}
        """Region → why its policy could not be published."""
        self._watchers = Watchers()
        self._publishing = asyncio.Lock()

    async def load(self) -> None:
        """Check the stored manifests for damage.

        Raises:
            StoreError: one of them is damaged.
        """
        async with self._database.read() as connection:
            for row in await read_undamaged(connection, schema.manifests):
                if json.loads(row.body)["region"] != row.region:
                    raise StoreError(f"table manifests: {row.region} is damaged: restore a backup")

    async def run(self) -> None:
        """Publish to all regions after every change, until cancelled."""
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
        """Bring every known region up to date, and wake the watchers. A region that fails does not stop the others."""
        for region in list(self._policies):
            async with self._publishing:
                await self._attempt(region, self._publish)
        self._watchers.wake()
        # Archive after the nodes are woken: it must not delay the policy.
        for region in list(self._policies):
            if region not in self.problems:
                async with self._publishing:
                    await self._attempt(region, self._archive_policy)

    async def _attempt(self, region: str, work: Callable[[str], Awaitable[None]]) -> None:
        try:
            await work(region)
        except Exception as error:  # other regions must still get theirs; this one is retried
            if self.problems.get(region) != str(error):
                _log.error("policy_not_published", region=region, error=str(error), kind=type(error).__name__)
            self.problems[region] = str(error)
        else:
            self.problems.pop(region, None)

    async def policy(self, region: str) -> RegionPolicy:
        """The policy of a region for the current state. A new region gets its first manifest.

        Raises:
            StoreError: its manifest could not be written.
        """
        if not self._is_current(region):
            async with self._publishing:
                is_new = region not in self._policies
                await self._publish(region)
                if is_new:
                    await self._archive_policy(region)
        return self._policies[region]

    def _is_current(self, region: str) -> bool:
        return self._editions.get(region) == self._ledger.edition

    async def _archive_policy(self, region: str) -> None:
        await self._archive.keep(build(self._policies[region].resources), self._clock.unix_ms())

    async def _publish(self, region: str) -> None:
        if self._is_current(region):
            return
        edition, state = self._ledger.edition, self._ledger.state
        payloads = resources(state, region, self._trust.download_keys(state, region), self._access)
        digest = sha256(canonical_json({name: sha256(payload).hex() for name, payload in payloads.items()}))
        published = self._policies.get(region)
        if self._digests.get(region) != digest or published is None or published.version[0] < state.epoch:
            epoch, number = await self._number(region, digest, state.epoch)
            # Set the state first: other threads expect one for every policy.
            signed = self._trust.sign_manifest(manifest_payload(region, (epoch, number), payloads))
            self._states[region], self._policies[region] = state, RegionPolicy((epoch, number), payloads, signed)
            self._digests[region] = digest
            _log.info("policy_published", region=region, manifest=(epoch, number), resources=len(payloads))
        self._editions[region], self._states[region] = edition, state

    async def _number(self, region: str, digest: bytes, least_epoch: int) -> Version:
        """The version for a policy with this digest: the stored one if it matches, else a new one."""
        async with self._database.write() as connection:
            stored = await _manifest(connection, region)
            epoch, number = (stored["epoch"], stored["number"]) if stored is not None else (least_epoch, 0)
            if stored is None or stored["digest"] != digest.hex() or epoch < least_epoch:
                epoch, number = max(epoch, least_epoch), number + 1
                body = json.dumps({"region": region, "epoch": epoch, "number": number, "digest": digest.hex()})
                await replace(connection, schema.manifests, [{"region": region, "body": body}])
        return epoch, number

    def has(self, region: str, version: Version, name: str) -> bool:
        """Whether this version of a region's policy has the current state of one assignment.

        Changes to other assignments do not matter. True for a region that has never asked for its policy.
        """
        policy = self._policies.get(region)
        if policy is None:
            return True
        theirs, current = (state.assignments.get(name) for state in (self._states[region], self._ledger.state))
        return policy.version == version and (
            theirs is current or _published(theirs, region) == _published(current, region)
        )

    def is_held(self, region: str, version: Version | None) -> bool:
        """Whether this version of a region's policy has everything that was changed until now."""
        policy = self._policies.get(region)
        return policy is not None and self._is_current(region) and version is not None and version >= policy.version

    async def behind(self, region: str, held: Version | None) -> Version | None:
        """Our manifest version, if the node's is newer or comes from another database; else None."""
        if held is None:
            return None
        async with self._database.read() as connection:
            stored = await _manifest(connection, region)
        # An unpublished region has the number 0: a node with any manifest of this epoch is ahead.
        epoch = self._ledger.state.epoch
        ours = (max(stored["epoch"], epoch), stored["number"]) if stored is not None else (epoch, 0)
        return ours if held > ours else None

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` whenever a policy changes."""
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._watchers.discard(event)


def _published(assignment: AssignmentState | None, region: str) -> Published | None:
    return assignment.for_region(region) if assignment is not None else None


async def _manifest(connection: AsyncConnection, region: str) -> dict[str, Any] | None:
    query = sa.select(schema.manifests.c.body).where(schema.manifests.c.region == region)
    body = (await connection.execute(query)).scalar_one_or_none()
    return None if body is None else dict(json.loads(body))

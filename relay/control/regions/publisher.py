"""What each region is to hold, under a manifest number that never goes back.

A number is written before anybody is sent it: after a crash the next one is higher, whatever nodes have seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.aio.clock import Clock
from relay.control.ledger import audit
from relay.control.ledger.revisions import Revisions
from relay.control.regions.archive import Configs
from relay.control.storage import schema
from relay.control.storage.database import Database, replace
from relay.control.storage.schema import EPOCH, FIRST_EPOCH
from relay.control.storage.sealed import read_truth
from relay.documents import canonical_json
from relay.errors import StoreError
from relay.ids import sha256
from relay.link.protocol import RegionPolicy, Version
from relay.observe import log
from relay.policy.snapshot import build

_log = log.get("opamp-relay.publish")


class Publisher:
    """The policies of all regions that ever asked for one."""

    def __init__(
        self,
        database: Database,
        revisions: Revisions,
        configs: Configs,
        *,
        clock: Clock,
        packages: Callable[[str], dict[str, bytes]],
    ) -> None:
        self._database = database
        self._revisions = revisions
        self._configs = configs
        self._clock = clock
        self._packages = packages
        self._policies: dict[str, RegionPolicy] = {}
        self._digests: dict[str, bytes] = {}
        self._watchers: set[asyncio.Event] = set()
        self._publishing = asyncio.Lock()
        self.epoch = FIRST_EPOCH
        """Of all that is published from now on."""

    async def load(self) -> None:
        """Read the epoch.

        Raises:
            StoreError: it, or what was published, is damaged.
        """
        async with self._database.read() as connection:
            facts = await read_truth(connection, schema.facts, schema.facts.c.name == EPOCH)
            for row in await read_truth(connection, schema.manifests):
                if json.loads(row.body)["region"] != row.region:
                    raise StoreError(f"table manifests: {row.region} is damaged: restore a backup")
        self.epoch = int(facts[0].value) if facts else FIRST_EPOCH

    async def behind(self, region: str, held: Version | None) -> Version | None:
        """What we have for a region, where a node holds something newer, or of another database; None where not."""
        if held is None:
            return None
        async with self._database.read() as connection:
            known = await _manifest(connection, region)
        # A region that never was published to has the number 0: a node that holds anything of this epoch is ahead.
        ours = (max(known["epoch"], self.epoch), known["number"]) if known is not None else (self.epoch, 0)
        return ours if held > ours else None

    async def raise_epoch(self, reason: str, *, actor: str, beyond: int = 0) -> int:
        """Begin a new epoch: whatever nodes hold of earlier ones is older than what is published from now on.

        Args:
            beyond: an epoch that was seen elsewhere.
        """
        async with self._publishing:
            async with self._database.write() as connection:
                epoch = max(self.epoch, await _highest_epoch(connection), beyond) + 1
                await replace(connection, schema.facts, [{"name": EPOCH, "value": str(epoch)}])
                entry = audit.Entry(actor, "raise-epoch", f"Epoch/{epoch}", str(epoch - 1), str(epoch), reason)
                await audit.add(connection, [entry], self._clock.unix_ms())
            self.epoch = epoch
        _log.warning("epoch_raised", epoch=epoch, reason=reason, actor=actor)
        await self.publish()
        return epoch

    async def policy(self, region: str) -> RegionPolicy:
        """The policy of a region; a region that is new gets its first manifest."""
        if region not in self._policies:
            async with self._publishing:
                if region not in self._policies:
                    await self._publish(region)
                    await self._keep(region)
        return self._policies[region]

    async def publish(self) -> None:
        """Something of the policy changed: bring every region that is known up to date and wake the watchers."""
        async with self._publishing:
            for region in list(self._policies):
                await self._publish(region)
        for event in self._watchers:
            event.set()
        # After the nodes have it: what can be looked up later must not hold up what is going out now.
        async with self._publishing:
            for region in list(self._policies):
                await self._keep(region)

    async def _keep(self, region: str) -> None:
        await self._configs.keep(build(self._policies[region].resources), self._clock.unix_ms())

    async def _publish(self, region: str) -> None:
        resources = {**self._revisions.resources(region), **self._packages(region)}
        digest = sha256(canonical_json({name: sha256(payload).hex() for name, payload in resources.items()}))
        published = self._policies.get(region)
        if self._digests.get(region) == digest and published is not None and published.version[0] >= self.epoch:
            return
        async with self._database.write() as connection:
            known = await _manifest(connection, region)
            epoch, number = (known["epoch"], known["number"]) if known is not None else (self.epoch, 0)
            if known is None or known["digest"] != digest.hex() or epoch < self.epoch:
                epoch, number = max(epoch, self.epoch), number + 1
                body = json.dumps({"region": region, "epoch": epoch, "number": number, "digest": digest.hex()})
                await replace(connection, schema.manifests, [{"region": region, "body": body}])
        self._policies[region] = RegionPolicy((epoch, number), resources)
        self._digests[region] = digest
        _log.info("policy_published", region=region, manifest=(epoch, number), resources=len(resources))

    def version(self, region: str) -> Version | None:
        """The manifest that a region should have; None for one that never asked."""
        policy = self._policies.get(region)
        return policy.version if policy is not None else None

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` at every change."""
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._watchers.discard(event)


async def _manifest(connection: AsyncConnection, region: str) -> dict[str, Any] | None:
    query = sa.select(schema.manifests.c.body).where(schema.manifests.c.region == region)
    body = (await connection.execute(query)).scalar_one_or_none()
    return None if body is None else dict(json.loads(body))


async def _highest_epoch(connection: AsyncConnection) -> int:
    bodies = (await connection.execute(sa.select(schema.manifests.c.body))).scalars()
    return max((json.loads(body)["epoch"] for body in bodies), default=FIRST_EPOCH)

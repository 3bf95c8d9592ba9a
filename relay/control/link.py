"""What stands behind the link: nodes are given their regions' policies and files, and their reports go to the fleet."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.ledger import Ledger
from relay.control.packages.blobs import Blobs
from relay.control.regions.publisher import Publisher
from relay.control.regions.resources import files_for
from relay.errors import StoreError
from relay.link.protocol import Peer, RegionPolicy, SyncSender, Version
from relay.pb.relay.v1 import link_pb2

_LOOK_AGAIN_S = 600.0


class Upstream:
    """Implements `link.server.Upstream`."""

    def __init__(
        self, ledger: Ledger, publisher: Publisher, fleet: Fleet, blobs: Blobs, tasks: Tasks, *, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._fleet = fleet
        self._blobs = blobs
        self._tasks = tasks
        self._clock = clock
        self._look_again: dict[str, float] = {}
        """SHA-256 of a package file that a node could not get → when it is worth another look."""

    async def policy(self, region: str) -> RegionPolicy:
        """What a region is to hold."""
        return await self._publisher.policy(region)

    async def behind(self, node: Peer, held: Version | None) -> Version | None:
        """Our manifest, where a node holds a newer one or one of another database."""
        ours = await self._publisher.behind(node.region, held)
        self._fleet.node_ahead(node, held if ours is not None else None)
        return ours

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` at every change of policy."""
        self._publisher.watch(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._publisher.unwatch(event)

    def node_synced(self, node: Peer, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down."""
        self._fleet.node_synced(node, sender, up)

    async def report(self, node: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Store a report."""
        ack = await self._fleet.report(node, report)
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
            await self._blobs.verify(sha256)

    async def node_reporting(self, node: Peer) -> None:
        """A node's Report stream came up."""
        await self._fleet.node_reporting(node)

    def node_gone(self, node: Peer) -> None:
        """A node's Report stream has ended."""
        self._fleet.node_gone(node)

    def blob_bytes(self, node: Peer, sha256: str) -> int | None:
        """Bytes of a file that a node may fetch; None for any other."""
        return files_for(self._ledger.state, node.region).get(sha256)

    def read_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a file from an offset on."""
        return self._blobs.read(sha256, offset)

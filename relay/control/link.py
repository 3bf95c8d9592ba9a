"""The control plane's side of the link: gives nodes their region's policy and files, and passes reports to the fleet."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.auth.signing import Signed
from relay.control.fleet.fleet import Fleet
from relay.control.keys.trust import Trust
from relay.control.ledger.ledger import Ledger
from relay.control.packages.blobs import Blobs
from relay.control.regions.publisher import Publisher
from relay.control.regions.resources import files_for
from relay.errors import StoreError
from relay.link.protocol.peer import Peer, Version
from relay.link.protocol.sender import RegionPolicy, SyncSender
from relay.pb.relay.v1 import link_pb2

_VERIFY_AGAIN_S = 600.0


class Upstream:
    """Implements `link.server.Upstream`."""

    def __init__(
        self,
        ledger: Ledger,
        trust: Trust,
        publisher: Publisher,
        fleet: Fleet,
        blobs: Blobs,
        tasks: Tasks,
        *,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._trust = trust
        self._publisher = publisher
        self._fleet = fleet
        self._blobs = blobs
        self._tasks = tasks
        self._clock = clock
        self._verify_after: dict[str, float] = {}
        """SHA-256 of a package file that a node could not get → earliest time to verify it again."""

    async def policy(self, region: str) -> RegionPolicy:
        """The current policy of a region."""
        return await self._publisher.policy(region)

    def sign_freshness(self, payload: bytes) -> Signed:
        """Sign a Freshness."""
        return self._trust.sign_freshness(payload)

    async def behind(self, node: Peer, held: Version | None) -> Version | None:
        """Our manifest version, if the node has a newer one or one from another database; else None."""
        ours = await self._publisher.behind(node.region, held)
        self._fleet.node_ahead(node, held if ours is not None else None)
        return ours

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` whenever a policy changes."""
        self._publisher.watch(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._publisher.unwatch(event)

    def admit(self, node: Peer) -> None:
        """Let a process be the node that it says it is, or raise Duplicate."""
        self._fleet.admit(node)

    def node_synced(self, node: Peer, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down."""
        self._fleet.node_synced(node, sender, up)

    async def report(self, node: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Store a report."""
        ack = await self._fleet.report(node, report)
        for problem in report.status.blob_problems:
            self._verify_soon(problem.sha256.hex())
        return ack

    def _verify_soon(self, sha256: str) -> None:
        """Verify a package file that a node could not get: our copy may be damaged."""
        now = self._clock.monotonic()
        if now >= self._verify_after.get(sha256, -math.inf):
            self._verify_after[sha256] = now + _VERIFY_AGAIN_S
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
        """The size of a file, if this node may fetch it; else None."""
        return files_for(self._ledger.state, node.region).get(sha256)

    def read_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Read a file from an offset."""
        return self._blobs.read(sha256, offset)

"""The package files of a region, on its node. Each is fetched once, verified, and served to agents that have its address.

A package is offered once its files are complete: only the SHA-256 of a whole file shows that it is good. Implements
`hub.PackageSource`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.errors import StoreError
from relay.node.packages.addresses import Addresses
from relay.node.packages.fetching import Fetch, Fetching
from relay.node.packages.permits import permits
from relay.observe.metrics import NodeMetrics
from relay.opamp.packages import PackagesOffer
from relay.policy.snapshot import Snapshot
from relay.store.blobs import BlobStore
from relay.transport.downloads import Denied, File

_CHECK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class PackageRules:
    """See `relay.settings.parts.NodePackages`."""

    public_url: str = ""
    require_signature: bool = False
    fetches: int = 2


class PackageCache:
    """All package files of a node.

    Args:
        fetch: fetches a file from the control plane.
        wanted: returns the offers that some agent would get; their files are kept.
        ready: called when a file that agents wait for has arrived.
        damaged: called with the SHA-256 of a file that was served and turned out to be damaged.
    """

    def __init__(
        self,
        blobs: BlobStore,
        fetch: Fetch,
        rules: PackageRules,
        *,
        clock: Clock,
        metrics: NodeMetrics,
        wanted: Callable[[], Iterable[PackagesOffer]],
        ready: Callable[[], None],
        damaged: Callable[[str], None],
    ) -> None:
        self._blobs = blobs
        self._rules = rules
        self._clock = clock
        self._metrics = metrics
        self._wanted = wanted
        self._damaged = damaged
        self._tasks = Tasks()
        self._addresses = Addresses(clock=clock)
        self._fetching = Fetching(
            blobs, fetch, at_once=rules.fetches, pinned=self._pinned, ready=ready, clock=clock, metrics=metrics
        )
        self._snapshot = Snapshot()
        self._denials: dict[str, str] = {}
        """SHA-256 of every file in the policy → why it may not be served; empty if it may."""
        self._checked_at: dict[str, float] = {}
        self._doubted: set[str] = set()
        """Files that wait to be checked, each at most once."""
        self.problems = self._fetching.problems
        """SHA-256 of files that are needed but not available → why."""

    # ---- policy

    def policy_changed(self, snapshot: Snapshot) -> None:
        """Apply a new policy: it decides which files may be served and which are fetched in advance."""
        self._snapshot = snapshot
        self._addresses.use(snapshot.download_keys)
        self._judge()
        for sha256 in self._snapshot.prefetch:
            self._fetching.want(sha256)
        wanted = self._pinned()
        for sha256 in list(self.problems):
            is_refused = bool(self._denials.get(sha256))
            if sha256 not in wanted or not (is_refused or sha256 in self._fetching):
                del self.problems[sha256]

    def tick(self) -> None:
        """Call this periodically: signatures expire without a change of policy."""
        if self._rules.require_signature:
            self._judge()

    def _judge(self) -> None:
        self._denials = permits(self._snapshot, self._clock.unix_ms(), require_signature=self._rules.require_signature)

    def _pinned(self) -> set[str]:
        """Files that must stay: those in offers, and those to fetch in advance."""
        offered = {package.sha256.hex() for offer in self._wanted() for package in offer.packages}
        return offered | self._snapshot.prefetch

    # ---- hub.PackageSource

    def reachable(self, base_url: str) -> bool:
        """See `hub.PackageSource`."""
        return bool(self._rules.public_url or base_url)

    def available(self, offer: PackagesOffer) -> bool:
        """See `hub.PackageSource`."""
        if not self._addresses.has_key:
            return False
        missing = False
        for package in offer.packages:
            sha256 = package.sha256.hex()
            if reason := self._denials.get(sha256, "it is not in the policy in force"):
                self.problems[sha256] = reason
                missing = True
            elif not self._blobs.is_verified(sha256):
                self._fetching.want(sha256)
                missing = True
        return not missing

    def field(self, offer: PackagesOffer, base_url: str) -> bytes:
        """See `hub.PackageSource`."""
        return self._addresses.field(offer, self._rules.public_url or base_url)

    # ---- serving

    def find(self, sha256: str, query: dict[str, str]) -> File:
        """The file for a request.

        Raises:
            Denied: the file may not be served, or is not available now.
        """
        try:
            file = self._find(sha256, query)
        except Denied as denied:
            self._metrics.blob_requests["miss" if denied.retry_after_s is not None else "refused"] += 1
            raise
        self._metrics.blob_requests["hit"] += 1
        return file

    def _find(self, sha256: str, query: dict[str, str]) -> File:
        self._addresses.verify(sha256, query)
        reason = self._denials.get(sha256)
        if reason is None:
            raise Denied(404, "no package in the policy has this file")
        if reason:
            raise Denied(410, reason)
        if self._blobs.is_verified(sha256) and not self._blobs.path(sha256).exists():
            self._blobs.remove(sha256)  # somebody deleted the file; forget it too
        if not self._blobs.is_verified(sha256):
            self._fetching.want(sha256)
            raise Denied(503, "the node does not have the file yet", retry_after_s=30)
        self._blobs.touch(sha256)
        return File(self._blobs.path(sha256), sha256)

    def recheck(self, sha256: str) -> None:
        """Check a file that an agent could not install, as it may be damaged. At most once a minute for each file."""
        if self._blobs.is_verified(sha256) and sha256 not in self._doubted:
            self._doubted.add(sha256)
            self._tasks.spawn(self._check(sha256), name="package-check")

    async def _check(self, sha256: str) -> None:
        wait_s = self._checked_at.get(sha256, float("-inf")) + _CHECK_AGAIN_S - self._clock.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self._checked_at[sha256] = self._clock.monotonic()
        self._doubted.discard(sha256)  # a failure from here on needs another check
        with contextlib.suppress(StoreError):
            if not await self._fetching.is_undamaged(sha256):
                self._damaged(sha256)
                if sha256 in self._pinned():
                    self._fetching.want(sha256)

    @property
    def available_files(self) -> list[str]:
        """SHA-256 of all files that can be downloaded."""
        return self._blobs.verified

    @property
    def used_bytes(self) -> int:
        """Bytes on disk."""
        return self._blobs.used_bytes

    @property
    def fetching(self) -> int:
        """Files being fetched, or waiting to be."""
        return len(self._fetching)

    async def close(self) -> None:
        """Stop fetching. Partial files are kept."""
        await self._fetching.close()
        await self._tasks.close()

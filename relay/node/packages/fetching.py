"""Getting package files from the control plane: each once however many wait for it, resumed, verified, with room made."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Set
from contextlib import AbstractAsyncContextManager

from relay.aio.backoff import Backoff
from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.errors import NotFound, RelayError, StoreError, UpstreamError
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.store.blobs import BlobStore

_log = log.get("opamp-relay.packages")
_WRITE_BYTES = 1 << 20

Fetch = Callable[[str, int], AsyncGenerator[tuple[int, bytes], None]]
"""(SHA-256, offset) → (bytes of the whole, next piece)."""
Lock = Callable[[str], AbstractAsyncContextManager[None]]
"""SHA-256 → held while that file is fetched: of the nodes of a region one may fetch for all."""


class Fetching:
    """All files on their way.

    Args:
        fetch: gets a file from the control plane.
        at_once: files that are fetched together.
        pinned: files that must stay: what is not among them is not fetched any more.
        ready: called when a file has come.
        lock: see `Lock`; by default this node fetches for itself.
    """

    def __init__(
        self,
        blobs: BlobStore,
        fetch: Fetch,
        *,
        at_once: int,
        pinned: Callable[[], Set[str]],
        ready: Callable[[], None],
        clock: Clock,
        metrics: NodeMetrics,
        lock: Lock = lambda _: contextlib.nullcontext(),
    ) -> None:
        self._blobs = blobs
        self._fetch = fetch
        self._pinned = pinned
        self._ready = ready
        self._clock = clock
        self._metrics = metrics
        self._lock = lock
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(at_once)
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self.problems: dict[str, str] = {}
        """SHA-256 of files that are wanted and cannot be had → why."""

    def __len__(self) -> int:
        return len(self._fetching)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._fetching

    def want(self, sha256: str) -> None:
        """Get a file that is not here."""
        if sha256 not in self._fetching and not self._blobs.holds(sha256):
            task = self._tasks.spawn(self._get(sha256), name="package-fetch")
            self._fetching[sha256] = task
            task.add_done_callback(lambda _: self._fetching.pop(sha256, None))

    async def _get(self, sha256: str) -> None:
        """Get a file until it is here or no agent needs it any more; however many wait for it, once."""
        backoff = Backoff(first_s=0.5, most_s=30.0, chance=random.random)
        while sha256 in self._pinned():
            try:
                async with self._slots, self._lock(sha256):
                    # A file of an earlier run is hashed again before it counts.
                    is_here = self._blobs.has_file(sha256) and await self.is_undamaged(sha256)
                    if is_here or await self._fetch_rest(sha256):
                        self.problems.pop(sha256, None)
                        self._ready()
                        return
                reason = "what arrived is not the file"
            except NotFound as error:
                reason = f"the control plane does not provide it: {error}"
            except RelayError as error:
                reason = str(error)
            if self.problems.get(sha256) != reason:
                _log.warning("package_not_fetched", sha256=sha256, reason=reason)
            self.problems[sha256] = reason
            self._metrics.blob_fetches["failed"] += 1
            await asyncio.sleep(backoff.next_delay_s())

    async def _fetch_rest(self, sha256: str) -> bool:
        """Fetch what is not here of a file. False where that was not the file."""
        blobs, began = self._blobs, self._clock.monotonic()
        offset = received = blobs.partial_bytes(sha256)
        waiting = bytearray()
        made_room = False
        try:
            async with contextlib.aclosing(self._fetch(sha256, offset)) as pieces:
                async for total, piece in pieces:
                    if not made_room:
                        made_room = await asyncio.to_thread(blobs.make_room, total - offset, self._pinned() | {sha256})
                        if not made_room:
                            raise StoreError(
                                "no space for it beside what the policy offers (packages.max_bytes, .keep_free)"
                            )
                    self._metrics.blob_fetch_bytes += len(piece)
                    received += len(piece)
                    if received > total:
                        raise UpstreamError(f"more than its {total} bytes arrived")
                    waiting += piece
                    if len(waiting) >= _WRITE_BYTES:
                        await self._append(sha256, waiting)
                        if sha256 not in self._pinned():
                            raise NotFound("no agent needs it any more")
                    if received == total:
                        break  # whatever becomes of the stream now
        finally:
            # Also of a fetch that broke off: the next one goes on behind it.
            await self._append(sha256, waiting)
        if not await asyncio.to_thread(blobs.finish, sha256):
            self._metrics.verification_failures += 1
            _log.error("package_not_verified", sha256=sha256, consequence="fetched again from the start")
            return False
        self._metrics.blob_fetches["done"] += 1
        took_ms = round((self._clock.monotonic() - began) * 1000)
        _log.info("package_fetched", sha256=sha256, resumed_at=offset, duration_ms=took_ms)
        return True

    async def _append(self, sha256: str, waiting: bytearray) -> None:
        content = bytes(waiting)
        waiting.clear()
        while content:
            try:
                await asyncio.to_thread(self._blobs.append, sha256, content)
                return
            except StoreError:
                # The disk is full before our own bound is reached: what nobody needs goes first.
                if not await asyncio.to_thread(self._blobs.drop_oldest, self._pinned() | {sha256}):
                    raise

    async def is_undamaged(self, sha256: str) -> bool:
        """Whether a file is still what it was; one that is not is gone."""
        if await asyncio.to_thread(self._blobs.verify, sha256):
            return True
        self._metrics.verification_failures += 1
        _log.error("package_damaged", sha256=sha256, consequence="fetched anew")
        return False

    async def close(self) -> None:
        """Stop fetching; what has come stays."""
        await self._tasks.close()

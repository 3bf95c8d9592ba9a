"""Fetches package files from the control plane: each only once, with resuming, verification, and removal of old files."""

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
"""(SHA-256, offset) → (size of the whole file, next piece)."""
Lock = Callable[[str], AbstractAsyncContextManager[None]]
"""SHA-256 → a lock to hold while fetching the file, so that one node of a region can fetch for all."""


class Fetching:
    """All files that are being fetched.

    Args:
        fetch: fetches a file from the control plane.
        at_once: how many files may be fetched at the same time.
        pinned: returns the files that must stay; fetching any other file stops.
        ready: called when a file has arrived.
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
        """SHA-256 of files that are needed but not available → why."""

    def __len__(self) -> int:
        return len(self._fetching)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._fetching

    def want(self, sha256: str) -> None:
        """Start to fetch a file unless it is here already."""
        if sha256 not in self._fetching and not self._blobs.is_verified(sha256):
            task = self._tasks.spawn(self._fetch_until_done(sha256), name="package-fetch")
            self._fetching[sha256] = task
            task.add_done_callback(lambda _: self._fetching.pop(sha256, None))

    async def _fetch_until_done(self, sha256: str) -> None:
        """Try until the file is here or no agent needs it any more."""
        backoff = Backoff(first_s=0.5, most_s=30.0, chance=random.random)
        while sha256 in self._pinned():
            try:
                async with self._slots, self._lock(sha256):
                    # Hash a file from an earlier run again before using it.
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
        """Fetch the missing part of a file. Return False if the result has the wrong SHA-256."""
        blobs, began = self._blobs, self._clock.monotonic()
        offset = received = blobs.partial_bytes(sha256)
        buffer = bytearray()
        made_room = False
        try:
            async with contextlib.aclosing(self._fetch(sha256, offset)) as pieces:
                async for total, piece in pieces:
                    if not made_room:
                        made_room = await asyncio.to_thread(blobs.make_room, total - offset, self._pinned() | {sha256})
                        if not made_room:
                            raise StoreError(
                                "no space for it beside the files in the policy;"
                                " raise packages.max_bytes or free disk space (packages.keep_free)"
                            )
                    self._metrics.blob_fetch_bytes += len(piece)
                    received += len(piece)
                    if received > total:
                        raise UpstreamError(f"the control plane sent more than the file's {total} bytes")
                    buffer += piece
                    if len(buffer) >= _WRITE_BYTES:
                        await self._append(sha256, buffer)
                        if sha256 not in self._pinned():
                            raise NotFound("no agent needs it any more")
                    if received == total:
                        break  # the rest of the stream does not matter
        finally:
            # After a broken fetch too: the next one resumes from here.
            await self._append(sha256, buffer)
        if not await asyncio.to_thread(blobs.finish, sha256):
            self._metrics.verification_failures += 1
            _log.error("package_not_verified", sha256=sha256, consequence="it will be fetched again from the start")
            return False
        self._metrics.blob_fetches["done"] += 1
        took_ms = round((self._clock.monotonic() - began) * 1000)
        _log.info("package_fetched", sha256=sha256, resumed_at=offset, duration_ms=took_ms)
        return True

    async def _append(self, sha256: str, buffer: bytearray) -> None:
        content = bytes(buffer)
        buffer.clear()
        while content:
            try:
                await asyncio.to_thread(self._blobs.append, sha256, content)
                return
            except StoreError:
                # The disk is full before our own limit is reached: drop a file that nobody needs.
                if not await asyncio.to_thread(self._blobs.drop_oldest, self._pinned() | {sha256}):
                    raise

    async def is_undamaged(self, sha256: str) -> bool:
        """Verify a file. A damaged one is removed."""
        if await asyncio.to_thread(self._blobs.verify, sha256):
            return True
        self._metrics.verification_failures += 1
        _log.error("package_damaged", sha256=sha256, consequence="it will be fetched again")
        return False

    async def close(self) -> None:
        """Stop fetching. Partial files are kept."""
        await self._tasks.close()

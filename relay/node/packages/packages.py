"""The packages of a region at its node: fetched once, verified, offered when they are here, served to who has an address.

A file is served when the whole of it is here: it has one SHA-256, and nothing of it is known to be good before its end.
Implements `hub.PackageSource`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from relay.aio.backoff import Backoff
from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.errors import NotFound, RelayError, StoreError, UpstreamError
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.opamp.packages import PackagesOffer, encode
from relay.policy.signatures import problem_with, public_key
from relay.policy.snapshot import PackageContent, Snapshot
from relay.store.blobs import BlobStore
from relay.transport.downloads import PATH, Denied, File

_log = log.get("opamp-relay.packages")
VALID_S = 24 * 3600
"""How long an address is good, at least. It is not made for one agent, so that an offer is encoded once for many."""
_ROUND_S = 3600
_MOST_FIELDS = 1000
_WRITE_BYTES = 1 << 20
_CHECK_AGAIN_S = 60.0

Fetch = Callable[[str, int], AsyncGenerator[tuple[int, bytes], None]]
"""(SHA-256, offset) → (bytes of the whole, next piece)."""
Lock = Callable[[str], AbstractAsyncContextManager[None]]
"""SHA-256 → held while that file is fetched: of the nodes of a region one may fetch for all."""


@dataclass(frozen=True, slots=True)
class PackageRules:
    """See `relay.settings.parts.NodePackages`."""

    public_url: str = ""
    require_signature: bool = False
    fetches: int = 2


class PackageCache:
    """All package files of a node.

    Args:
        fetch: gets a file from the control plane.
        wanted: offers that some agent would get; their files are kept.
        ready: called when a file has come that agents wait for.
        damaged: called with the SHA-256 of a file that agents were given and that is not what it should be.
        lock: see `Lock`; by default this node fetches for itself.
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
        lock: Lock = lambda _: contextlib.nullcontext(),
    ) -> None:
        self._blobs = blobs
        self._fetch = fetch
        self._rules = rules
        self._clock = clock
        self._metrics = metrics
        self._wanted = wanted
        self._ready = ready
        self._damaged = damaged
        self._lock = lock
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(rules.fetches)
        self._snapshot = Snapshot()
        self._allowed: dict[str, str] = {}
        """SHA-256 of every file of the policy in force → why it may not be served; empty where it may."""
        self._fields: dict[tuple[bytes, str, int], bytes] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._checked: dict[str, float] = {}
        self._doubted: set[str] = set()
        """Files that are to be looked at; of each one check waits at the most."""
        self.problems: dict[str, str] = {}
        """SHA-256 of files that are wanted and cannot be had → why."""

    # ---- policy

    def policy_changed(self, snapshot: Snapshot) -> None:
        """Another policy is in force: it says what may be served, and what is to be fetched ahead."""
        self._snapshot = snapshot
        self._fields.clear()
        self._judge()
        for sha256 in self._snapshot.prefetch:
            self._want(sha256)
        wanted = self._pinned()
        for sha256 in list(self.problems):
            is_refused = bool(self._allowed.get(sha256))
            if sha256 not in wanted or not (is_refused or sha256 in self._fetching):
                del self.problems[sha256]

    def tick(self) -> None:
        """Now and then: signatures end without a change of policy."""
        if self._rules.require_signature:
            self._judge()

    def _judge(self) -> None:
        keys: dict[str, Ed25519PublicKey] = {}
        for name, pem in self._snapshot.signing_keys.items():
            with contextlib.suppress(ValueError):
                keys[name] = public_key(pem)
        now_ms = self._clock.unix_ms()
        allowed: dict[str, str] = {}
        contents = (c for a in self._snapshot.assignments for c in a.contents if isinstance(c, PackageContent))
        for package, file in ((p, f) for c in contents for p in c.packages for f in p.files):
            reason = f"package {package.key} was yanked" if package.key in self._snapshot.yanked else ""
            if not reason and self._rules.require_signature:
                reason = problem_with(package, file, keys, now_ms)
            if allowed.get(file.sha256) != "":  # one good use of the same bytes is enough
                allowed[file.sha256] = reason
        self._allowed = allowed

    def _pinned(self) -> set[str]:
        """Files that must stay: what is offered, and what was asked for ahead."""
        offered = {package.sha256.hex() for offer in self._wanted() for package in offer.packages}
        return offered | self._snapshot.prefetch

    def _is_wanted(self, sha256: str) -> bool:
        return sha256 in self._pinned()

    # ---- hub.PackageSource

    def reachable(self, base_url: str) -> bool:
        """See `hub.PackageSource`."""
        return bool(self._rules.public_url or base_url)

    def available(self, offer: PackagesOffer) -> bool:
        """See `hub.PackageSource`."""
        if not self._snapshot.download_keys:
            return False
        missing = False
        for package in offer.packages:
            sha256 = package.sha256.hex()
            if reason := self._allowed.get(sha256, "it is not of the policy in force"):
                self.problems[sha256] = reason
                missing = True
            elif not self._blobs.holds(sha256):
                self._want(sha256)
                missing = True
        return not missing

    def field(self, offer: PackagesOffer, base_url: str) -> bytes:
        """See `hub.PackageSource`."""
        base = self._rules.public_url or base_url
        expires_s = (self._clock.unix_ms() // 1000 // _ROUND_S + 1) * _ROUND_S + VALID_S
        key = (offer.hash, base, expires_s)
        held = self._fields.get(key)
        if held is None:
            if len(self._fields) >= _MOST_FIELDS:
                self._fields.clear()
            held = self._fields[key] = encode(offer, lambda sha256: self._address(base, sha256.hex(), expires_s))
        return held

    def _address(self, base: str, sha256: str, expires_s: int) -> str:
        signature = _sign(self._snapshot.download_keys[0], sha256, expires_s)
        return f"{base.rstrip('/')}{PATH}{sha256}?expires={expires_s}&signature={signature}"

    # ---- serving

    def find(self, sha256: str, query: dict[str, str]) -> File:
        """The file that a request asks for.

        Raises:
            Denied: it may not have it, or not now.
        """
        try:
            file = self._find(sha256, query)
        except Denied as denied:
            self._metrics.blob_requests["miss" if denied.retry_after_s is not None else "refused"] += 1
            raise
        self._metrics.blob_requests["hit"] += 1
        return file

    def _find(self, sha256: str, query: dict[str, str]) -> File:
        expires, given = query.get("expires", ""), query.get("signature", "")
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
            raise Denied(403, "the address is not complete")
        good = [_sign(key, sha256, int(expires)) for key in self._snapshot.download_keys]
        if not any(hmac.compare_digest(given.encode(), one.encode()) for one in good):
            raise Denied(403, "the signature of the address is not good")
        if int(expires) * 1000 < self._clock.unix_ms():
            raise Denied(403, "the address has expired; the agent is given a new one when it says that it failed")
        reason = self._allowed.get(sha256)
        if reason is None:
            raise Denied(404, "nothing of the policy in force has this file")
        if reason:
            raise Denied(410, reason)
        if self._blobs.holds(sha256) and not self._blobs.path(sha256).exists():
            self._blobs.remove(sha256)  # somebody else did
        if not self._blobs.holds(sha256):
            self._want(sha256)
            raise Denied(503, "the file is not here yet", retry_after_s=30)
        self._blobs.used(sha256)
        return File(self._blobs.path(sha256), sha256)

    def doubt(self, sha256: str) -> None:
        """An agent could not install a file: perhaps it is no longer what it was. Look, once a minute at most."""
        if self._blobs.holds(sha256) and sha256 not in self._doubted:
            self._doubted.add(sha256)
            self._tasks.spawn(self._check(sha256), name="package-check")

    async def _check(self, sha256: str) -> None:
        wait_s = self._checked.get(sha256, float("-inf")) + _CHECK_AGAIN_S - self._clock.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self._checked[sha256] = self._clock.monotonic()
        self._doubted.discard(sha256)  # what fails from here on is another doubt
        with contextlib.suppress(StoreError):
            if not await self._is_undamaged(sha256):
                self._damaged(sha256)
                if self._is_wanted(sha256):
                    self._want(sha256)

    async def _is_undamaged(self, sha256: str) -> bool:
        """Whether a file is still what it was; one that is not is gone."""
        if await asyncio.to_thread(self._blobs.verify, sha256):
            return True
        self._metrics.verification_failures += 1
        _log.error("package_damaged", sha256=sha256, consequence="fetched anew")
        return False

    # ---- fetching

    def _want(self, sha256: str) -> None:
        if sha256 not in self._fetching and not self._blobs.holds(sha256):
            task = self._tasks.spawn(self._get(sha256), name="package-fetch")
            self._fetching[sha256] = task
            task.add_done_callback(lambda _: self._fetching.pop(sha256, None))

    async def _get(self, sha256: str) -> None:
        """Get a file until it is here or nobody wants it any more; however many wait for it, once."""
        backoff = Backoff(first_s=0.5, most_s=30.0, chance=random.random)
        while self._is_wanted(sha256):
            try:
                async with self._slots, self._lock(sha256):
                    # A file of an earlier run is hashed again before it counts.
                    is_here = self._blobs.has_file(sha256) and await self._is_undamaged(sha256)
                    if is_here or await self._fetch_rest(sha256):
                        self.problems.pop(sha256, None)
                        self._ready()
                        return
                reason = "what came is not the file"
            except NotFound as error:
                reason = f"the control plane does not give it: {error}"
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
                                "no room for it beside what policy offers (packages.max_bytes, .keep_free)"
                            )
                    self._metrics.blob_fetch_bytes += len(piece)
                    received += len(piece)
                    if received > total:
                        raise UpstreamError(f"more came than the {total} bytes that it should have")
                    waiting += piece
                    if len(waiting) >= _WRITE_BYTES:
                        await self._append(sha256, waiting)
                        if not self._is_wanted(sha256):
                            raise NotFound("nobody wants it any more")
                    if received == total:
                        break  # whatever becomes of the stream now
        finally:
            # Also of a fetch that broke off: the next one goes on behind it.
            await self._append(sha256, waiting)
        if not await asyncio.to_thread(blobs.finish, sha256):
            self._metrics.verification_failures += 1
            _log.error("package_not_verified", sha256=sha256, consequence="fetched anew from the start")
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

    @property
    def held(self) -> list[str]:
        """SHA-256 of everything that can be downloaded."""
        return self._blobs.held

    @property
    def used_bytes(self) -> int:
        """Bytes on disk."""
        return self._blobs.used_bytes

    @property
    def fetching(self) -> int:
        """Files on their way, or waiting for their turn."""
        return len(self._fetching)

    async def close(self) -> None:
        """Stop fetching; what has come stays."""
        await self._tasks.close()


def _sign(key: bytes, sha256: str, expires_s: int) -> str:
    return hmac.new(key, f"{sha256}.{expires_s}".encode(), hashlib.sha256).hexdigest()

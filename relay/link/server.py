"""The control plane's end of the link: gRPC streams on one side, a gRPC-free `Upstream` on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from relay.aio.clock import Clock
from relay.aio.grpc_services import add_standard_services
from relay.aio.tasks import beside
from relay.auth.signing import Signed
from relay.errors import Duplicate, RelayError
from relay.link import channel
from relay.link.protocol.peer import Peer, Version, version_message
from relay.link.protocol.sender import RegionPolicy, SyncSender
from relay.link.protocol.signatures import freshness_payload, signed_message
from relay.observe import log
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc

_log = log.get("opamp-relay.link")
FRESHNESS_S = 30.0
_END_S = 5.0
_CHUNK_BYTES = 256 << 10
"""gRPC's flow control limits the number of chunks in flight; small chunks keep its buffers small."""
_BLOBS_AT_ONCE = 32
"""How many files may be sent to nodes at the same time."""


class Upstream(Protocol):
    """What the link server needs from the control plane."""

    async def policy(self, region: str) -> RegionPolicy:
        """Return the policy that the region should hold now."""
        ...

    def sign_freshness(self, payload: bytes) -> Signed:
        """Sign a Freshness. Only called where policy is signed."""
        ...

    async def behind(self, node: Peer, held: Version | None) -> Version | None:
        """Return our manifest version if the node's is newer or from another database; otherwise None."""
        ...

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` whenever any region's policy changes."""
        ...

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        ...

    def admit(self, node: Peer) -> None:
        """Accept a process as the node that it says it is. Raises Duplicate if another process is that node."""
        ...

    def node_synced(self, node: Peer, sender: SyncSender, up: bool) -> None:
        """Called when a Sync stream of the node starts or ends; an old one may end after its successor starts."""
        ...

    async def report(self, node: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Store a report. Returns only once it is stored."""
        ...

    async def node_reporting(self, node: Peer) -> None:
        """Called when a Report stream of the node starts. Raises RelayError to refuse it."""
        ...

    def node_gone(self, node: Peer) -> None:
        """Called when a Report stream that was not refused ends."""
        ...

    def blob_bytes(self, node: Peer, sha256: str) -> int | None:
        """Return the size of a package file; None if the node may not fetch it."""
        ...

    def read_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a package file, starting at `offset`."""
        ...


Identify = Callable[[bytes], tuple[str, str] | str]


class _Servicer(link_pb2_grpc.ControlPlaneServicer):
    def __init__(self, upstream: Upstream, clock: Clock, identify: Identify | None) -> None:
        self._upstream = upstream
        self._clock = clock
        self._identify = identify
        self.open: dict[asyncio.Task[Any], tuple[bytes, Any]] = {}
        """Running calls of nodes with certificates → (the certificate, PEM; the context of the call)."""
        self.running: set[asyncio.Task[Any]] = set()
        self._streams: dict[asyncio.Task[Any], tuple[Peer, Any]] = {}
        """Open Sync and Report streams → (the node, the context of the call)."""
        self._blobs = asyncio.Semaphore(_BLOBS_AT_ONCE)

    def _count(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def _admitted(self, claimed: Peer, context: Any) -> None:
        """End a call unless the certificate of the caller is for the node that it claims to be, and is accepted."""
        if self._identify is None:
            return
        found = context.auth_context().get("x509_pem_cert", ())
        pem = bytes(found[0]) if found else b""
        identity = self._identify(pem)
        if isinstance(identity, str):
            _log.warning("link_refused", node=f"{claimed.region}/{claimed.name}"[:130], reason=identity)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, identity)
            raise AssertionError("abort always raises")
        if (claimed.region, claimed.name) != identity:
            reason = f"the certificate is for {identity[0]}/{identity[1]}, not for {claimed.region}/{claimed.name}"
            _log.warning("link_refused", node="/".join(identity), reason=reason[:300])
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason[:300])
        task = asyncio.current_task()
        assert task is not None
        self.open[task] = pem, context
        task.add_done_callback(lambda _: self.open.pop(task, None))

    async def _supersede(self, node: Peer, context: Any) -> None:
        """Admit a stream, and end those of a former process of the same node. A duplicate's is ended instead."""
        try:
            self._upstream.admit(node)
        except Duplicate as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        mine = asyncio.current_task()
        assert mine is not None
        for task, (other, of) in list(self._streams.items()):
            if (other.region, other.name) == (node.region, node.name) and other.incarnation != node.incarnation:
                self._streams.pop(task, None)
                await _end(task, of, grpc.StatusCode.ALREADY_EXISTS, "a newer process of this node has connected")
        self._streams[mine] = node, context
        mine.add_done_callback(lambda _: self._streams.pop(mine, None))

    async def end_refused(self) -> None:
        """End the calls of nodes whose certificate is no longer accepted."""
        for task, (pem, context) in list(self.open.items()):
            reason = self._identify(pem) if self._identify is not None else ""
            if isinstance(reason, str) and reason:
                _log.warning("link_ended", reason=reason)
                self.open.pop(task, None)  # it may take a while to end
                await _end(task, context, grpc.StatusCode.UNAUTHENTICATED, reason)

    async def Sync(self, requests: Any, context: Any) -> AsyncIterator[link_pb2.SyncResponse]:
        self._count()
        first = await anext(aiter(requests), link_pb2.SyncRequest())
        if not first.hello.node.region:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello with a region")
        node = Peer.of(first.hello.node)
        await self._admitted(node, context)
        sender = SyncSender(first.hello)
        node_version: Version | None = None
        if first.hello.HasField("manifest"):
            node_version = (first.hello.manifest.epoch, first.hello.manifest.number)
        await self._supersede(node, context)
        wake = asyncio.Event()
        self._upstream.watch(wake)
        self._upstream.node_synced(node, sender, True)
        try:
            async with beside(self._acks(requests, node, sender, wake), name="sync-acks") as reader:
                async for response in self._responses(node, sender, node_version, wake, reader):
                    yield response
                await reader
        finally:
            self._upstream.unwatch(wake)
            self._upstream.node_synced(node, sender, False)

    async def _responses(
        self,
        node: Peer,
        sender: SyncSender,
        node_version: Version | None,
        wake: asyncio.Event,
        reader: asyncio.Task[None],
    ) -> AsyncIterator[link_pb2.SyncResponse]:
        """Yield what a node is sent until its stream ends."""
        freshness_sent_at = float("-inf")
        while not reader.done():
            wake.clear()
            if (ours := await self._upstream.behind(node, node_version)) is not None:
                # Send no policy: an operator must decide whose is right.
                yield link_pb2.SyncResponse(behind=link_pb2.Behind(version=version_message(ours)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FRESHNESS_S):
                        await wake.wait()
                continue
            node_version = None  # from now on, the node holds what it was sent
            policy = await self._upstream.policy(node.region)
            now = self._clock.monotonic()
            if now - freshness_sent_at >= FRESHNESS_S:
                sender.retry()
            updates = sender.next(policy)
            for update in updates:
                yield update
            # The node reads it once the update is in force: only a Freshness says since when.
            if updates or now - freshness_sent_at >= FRESHNESS_S:
                freshness_sent_at = now
                yield self._freshness(node.region, policy, sender)
            try:
                async with asyncio.timeout(max(0.0, freshness_sent_at + FRESHNESS_S - self._clock.monotonic())):
                    await wake.wait()
            except TimeoutError:
                continue

    def _freshness(self, region: str, policy: RegionPolicy, sender: SyncSender) -> link_pb2.SyncResponse:
        payload = freshness_payload(region, policy.version, self._clock.unix_ms())
        if policy.manifest is not None and sender.knows_signatures:
            return link_pb2.SyncResponse(signed_freshness=signed_message(self._upstream.sign_freshness(payload)))
        return link_pb2.SyncResponse(freshness=link_pb2.Freshness.FromString(payload))

    async def _acks(self, requests: Any, node: Peer, sender: SyncSender, wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                if request.HasField("ack") and sender.acknowledged(request.ack):
                    for rejection in sender.rejected.values():
                        _log.warning(
                            "resource_rejected",
                            node=f"{node.region}/{node.name}",
                            resource=rejection.name,
                            reason=rejection.reason,
                        )
                    if sender.refused:
                        _log.error("policy_refused", node=f"{node.region}/{node.name}", reason=sender.refused)
                    wake.set()
        finally:
            wake.set()

    async def Report(self, requests: Any, context: Any) -> AsyncIterator[link_pb2.ReportAck]:
        self._count()
        first = await anext(aiter(requests), link_pb2.StatusReport())
        if not first.hello.region:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must have a hello with a region")
        node = Peer.of(first.hello)
        await self._admitted(node, context)
        await self._supersede(node, context)
        try:
            await self._upstream.node_reporting(node)
        except RelayError as error:
            is_duplicate = isinstance(error, Duplicate)
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS if is_duplicate else grpc.StatusCode.UNAVAILABLE, str(error)
            )
        try:
            async for report in requests:
                try:
                    yield await self._upstream.report(node, report)
                except RelayError as error:
                    _log.error("report_not_stored", node=f"{node.region}/{node.name}", error=str(error))
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            self._upstream.node_gone(node)

    async def FetchBlob(self, request: link_pb2.BlobRequest, context: Any) -> AsyncIterator[link_pb2.BlobChunk]:
        self._count()
        sha256, node = request.sha256.hex(), Peer.of(request.node)
        await self._admitted(node, context)
        total = self._upstream.blob_bytes(node, sha256)
        if total is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{sha256} is not a file of this region")
        elif request.offset > total:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, f"{sha256} has only {total} bytes")
        elif request.offset == total:
            yield link_pb2.BlobChunk(total=total)
        elif self._blobs.locked():
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many files are being fetched; try again later")
        else:
            async with self._blobs:
                try:
                    async for piece in self._upstream.read_blob(sha256, request.offset):
                        for start in range(0, len(piece), _CHUNK_BYTES):
                            yield link_pb2.BlobChunk(total=total, data=piece[start : start + _CHUNK_BYTES])
                except RelayError as error:
                    _log.error("blob_unreadable", sha256=sha256, error=str(error))
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))


async def _end(task: asyncio.Task[Any], context: Any, status: grpc.StatusCode, reason: str) -> None:
    """End a call and say why. One that is only cancelled tells its caller nothing."""
    # It may have ended meanwhile, or be ending.
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.UsageError, asyncio.InvalidStateError):
        await context.abort(status, reason)
    task.cancel()


class LinkServer:
    """The gRPC server of a control plane.

    Args:
        identify: the certificate of a caller, PEM (empty if it has none) → (region, name), or why it is refused; None
            where nodes need no certificate.
    """

    def __init__(self, upstream: Upstream, clock: Clock, identify: Identify | None = None) -> None:
        self._server = channel.server()
        self._servicer = _Servicer(upstream, clock, identify)
        link_pb2_grpc.add_ControlPlaneServicer_to_server(self._servicer, self._server)
        self._health = add_standard_services(self._server, "relay.v1.ControlPlane", reflects=identify is None)
        self.port = 0

    async def end_refused(self) -> None:
        """End the streams of nodes whose certificate is no longer accepted."""
        await self._servicer.end_refused()

    async def start(self, endpoint: str, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen.

        Raises:
            OSError: the endpoint cannot be bound.
        """
        self.port = channel.listen(self._server, endpoint, credentials)
        await self._server.start()

    async def stop(self, grace_s: float = 0.5) -> None:
        """Stop accepting and end the streams. Pending writes are done or abandoned on return."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        if self._servicer.running:
            await asyncio.wait(self._servicer.running, timeout=_END_S)

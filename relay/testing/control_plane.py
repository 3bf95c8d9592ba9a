"""A control plane that misbehaves on request: old manifests, wrong digests, resources that do not parse, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from relay.aio.tasks import beside
from relay.ids import sha256
from relay.link import channel
from relay.link.protocol.peer import WINDOW
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc

_CHUNK_BYTES = 64 << 10


class ScriptedControlPlane(link_pb2_grpc.ControlPlaneServicer):
    """Sends exactly the updates that a test queues, and records what nodes send."""

    def __init__(self) -> None:
        self.acks: asyncio.Queue[link_pb2.SyncAck] = asyncio.Queue()
        self.hellos: list[link_pb2.SyncHello] = []
        self.reports: list[link_pb2.StatusReport] = []
        self.acknowledging = True
        """False: reports are accepted but never acknowledged."""
        self.blobs: dict[str, bytes] = {}
        """SHA-256 → the bytes to send for it, right or wrong."""
        self.cut_after: int | None = None
        """Break off each fetch after this many bytes."""
        self.fetches: list[tuple[str, int]] = []
        """(SHA-256, offset) of each fetch."""
        self._updates: asyncio.Queue[link_pb2.SyncResponse] = asyncio.Queue()
        self._server = channel.server()
        link_pb2_grpc.add_ControlPlaneServicer_to_server(self, self._server)
        self.port = 0

    async def start(self, port: int = 0) -> None:
        """Listen on loopback."""
        self.port = channel.listen(self._server, f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        """End all streams."""
        await self._server.stop(0)

    def send(
        self,
        resources: Mapping[str, bytes],
        version: tuple[int, int],
        *,
        region: str = "local",
        corrupt: frozenset[str] = frozenset(),
    ) -> None:
        """Queue a whole policy as one update.

        Args:
            corrupt: names of resources to damage in transit.
        """
        update = link_pb2.Update(nonce=f"{version[0]}-{version[1]}")
        update.manifest.version.epoch, update.manifest.version.number = version
        update.manifest.region = region
        for name, payload in resources.items():
            update.manifest.entries.add(name=name, digest=sha256(payload))
            update.resources.add(
                name=name, digest=sha256(payload), payload=payload + b" " if name in corrupt else payload
            )
        self._updates.put_nowait(link_pb2.SyncResponse(update=update))

    async def Sync(self, requests: Any, context: Any) -> AsyncIterator[link_pb2.SyncResponse]:
        """See `relay.v1.ControlPlane`."""
        async with beside(self._read(requests), name="scripted-sync"):
            while True:
                yield await self._updates.get()

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            if request.HasField("hello"):
                self.hellos.append(request.hello)
            else:
                self.acks.put_nowait(request.ack)

    async def FetchBlob(self, request: link_pb2.BlobRequest, context: Any) -> AsyncIterator[link_pb2.BlobChunk]:
        """See `relay.v1.ControlPlane`."""
        sha256 = request.sha256.hex()
        self.fetches.append((sha256, request.offset))
        if sha256 not in self.blobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        content = self.blobs[sha256]
        rest = content[request.offset :]
        if self.cut_after is not None:
            rest = rest[: self.cut_after]
        for start in range(0, len(rest), _CHUNK_BYTES):
            yield link_pb2.BlobChunk(total=len(content), data=rest[start : start + _CHUNK_BYTES])
        if self.cut_after is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def Report(self, requests: Any, context: Any) -> AsyncIterator[link_pb2.ReportAck]:
        """See `relay.v1.ControlPlane`."""
        async for report in requests:
            self.reports.append(report)
            if self.acknowledging and report.sequence:
                yield link_pb2.ReportAck(sequence=report.sequence, window=WINDOW)

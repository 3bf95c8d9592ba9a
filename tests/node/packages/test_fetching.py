"""Fetching from a scripted source."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

from relay.errors import NotFound, UpstreamError
from relay.node.packages.fetching import Fetching
from relay.observe.metrics import NodeMetrics
from relay.store.blobs import BlobStore
from relay.testing.clock import ManualClock
from tests.conftest import eventually

CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Desk:
    def __init__(self, folder: Path, content: bytes = CONTENT, max_bytes: int = 1 << 20) -> None:
        self.content = content
        self.pinned = {SHA256}
        self.offsets: list[int] = []
        self.cut = 0
        """The number of fetches to break off half way."""
        self.gives = True
        self.ready = 0
        self.metrics = NodeMetrics("eu")
        self.blobs = BlobStore(folder / "blobs", max_bytes)
        self.fetching = Fetching(
            self.blobs, self.source, at_once=2, pinned=lambda: self.pinned, ready=self.came,
            clock=ManualClock(), metrics=self.metrics,
        )  # fmt: skip

    def came(self) -> None:
        self.ready += 1

    async def source(self, sha256: str, offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        self.offsets.append(offset)
        if not self.gives:
            raise NotFound("no such file")
        half = offset + (len(self.content) - offset) // 2
        yield len(self.content), self.content[offset:half]
        if self.cut:
            self.cut -= 1
            raise UpstreamError("cut")
        yield len(self.content), self.content[half:]


async def test_file_is_fetched_once_for_all_waiters(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for _ in range(5):
        desk.fetching.want(SHA256)
    assert (len(desk.fetching), SHA256 in desk.fetching) == (1, True)
    await eventually(lambda: desk.ready)
    assert (desk.offsets, desk.blobs.path(SHA256).read_bytes()) == ([0], CONTENT)
    desk.fetching.want(SHA256)
    assert desk.offsets == [0], "it is here"
    await desk.fetching.close()


async def test_interrupted_fetch_resumes(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.cut = 1
    desk.fetching.want(SHA256)
    await eventually(lambda: desk.fetching.problems.get(SHA256) == "cut")
    await eventually(lambda: desk.ready)
    assert desk.offsets == [0, len(CONTENT) // 2]
    assert desk.fetching.problems == {}
    await desk.fetching.close()


async def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path, content=CONTENT[::-1])
    desk.fetching.want(SHA256)
    await eventually(lambda: desk.fetching.problems.get(SHA256) == "what arrived is not the file")
    assert (desk.ready, desk.metrics.verification_failures, desk.blobs.is_verified(SHA256)) == (0, 1, False)
    await desk.fetching.close()


async def test_unwanted_fetch_is_abandoned(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.gives = False
    desk.fetching.want(SHA256)
    await eventually(lambda: "does not provide it" in desk.fetching.problems.get(SHA256, ""))
    desk.pinned.clear()
    await eventually(lambda: not len(desk.fetching))
    assert desk.ready == 0
    await desk.fetching.close()


async def test_fetch_fails_without_room_beside_pinned_files(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_bytes=1000)
    desk.fetching.want(SHA256)
    await eventually(lambda: "no space for it" in desk.fetching.problems.get(SHA256, ""))
    await desk.fetching.close()

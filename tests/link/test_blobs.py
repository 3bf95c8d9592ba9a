from __future__ import annotations

import pytest

from relay.errors import NotFound, UpstreamError
from relay.link.blobs import BlobSource
from relay.link.protocol.peer import Peer
from tests.conftest import Programs, apply
from tests.control.actors import ANN
from tests.packages import package_assignment, push

CONTENT = bytes(range(256)) * 8000


def source(port: int, region: str = "eu") -> BlobSource:
    return BlobSource(f"127.0.0.1:{port}", Peer(region, "n"))


async def read(source: BlobSource, sha256: str, offset: int = 0) -> tuple[set[int], bytes]:
    totals, content = set(), b""
    async for total, piece in source.fetch(sha256, offset):
        totals.add(total)
        content += piece
    return totals, content


async def test_read_from_any_offset(programs: Programs) -> None:
    plane = await programs.control_plane()
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment(target_selector="{labels: {region: eu}}"))
    here = source(plane.ports["link"])
    for offset in (0, 1, 1_000_000, len(CONTENT) - 1, len(CONTENT)):
        assert await read(here, sha256, offset) == ({len(CONTENT)}, CONTENT[offset:])
    with pytest.raises(UpstreamError, match="OUT_OF_RANGE"):
        await read(here, sha256, len(CONTENT) + 1)
    await here.close()


async def test_region_gets_only_its_files(programs: Programs) -> None:
    plane = await programs.control_plane()
    sha256 = await push(plane, CONTENT)
    await apply(plane, package_assignment(target_selector="{labels: {region: eu}}"))
    elsewhere = source(plane.ports["link"], "us")
    with pytest.raises(NotFound, match="is not a file of this region"):
        await read(elsewhere, sha256)
    await plane.packages.prefetch("otelcol@1", ["us"], actor=ANN)
    assert (await read(elsewhere, sha256))[1] == CONTENT
    await elsewhere.close()


async def test_unreachable_source() -> None:
    nowhere = source(1)
    with pytest.raises(UpstreamError, match="UNAVAILABLE"):
        await read(nowhere, "0" * 64)
    await nowhere.close()
    await nowhere.close()

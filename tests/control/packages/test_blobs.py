"""Package bytes in a folder and in a real S3 server (moto's)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from relay.control.packages.blobs import PIECE_BYTES, Blobs, open_store
from relay.errors import Conflict, NotFound, StoreError
from relay.settings.parts import PackageStorage
from relay.store.blobs import BlobStore
from tests.packages import digest

CONTENT = os.urandom(20 * PIECE_BYTES + 7)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="packages")
    yield url
    server.stop()


def settings(kind: str, url: str) -> PackageStorage:
    if kind == "folder":
        return PackageStorage()
    return PackageStorage(
        type="s3",
        bucket="packages",
        prefix="relay/blobs",
        region="us-east-1",
        endpoint=url,
        options={"access_key_id": SecretStr("a"), "secret_access_key": SecretStr("b")},
    )


@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_uploaded_blob_is_read_from_any_offset(kind: str, s3: str, tmp_path: Path) -> None:
    store = open_store(settings(kind, s3), tmp_path / "packages")
    blobs = Blobs(store, BlobStore(tmp_path / "spool", 1 << 30), max_file_bytes=1 << 30)
    name = digest(CONTENT)
    for offset in range(0, len(CONTENT), 3 * PIECE_BYTES):
        await blobs.receive(name, offset, CONTENT[offset : offset + 3 * PIECE_BYTES])
    assert await blobs.received(name) == (len(CONTENT), False)
    await blobs.finish(name, len(CONTENT))
    await blobs.finish(name, len(CONTENT))
    assert await blobs.received(name) == (len(CONTENT), True)
    with pytest.raises(Conflict):
        await blobs.finish(name, 5)
    for offset in (0, 1, 7 * PIECE_BYTES, len(CONTENT) - 1):
        assert b"".join([piece async for piece in blobs.read(name, offset)]) == CONTENT[offset:]
    await blobs.delete(name)
    await blobs.delete(name)
    assert await blobs.size(name) is None
    with pytest.raises(NotFound):
        _ = [piece async for piece in blobs.read(name)]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_unreachable_store_is_one_line_error(tmp_path: Path) -> None:
    blobs = Blobs(
        open_store(settings("s3", "http://127.0.0.1:1"), tmp_path),
        BlobStore(tmp_path / "spool", 1 << 30),
        max_file_bytes=1 << 30,
    )
    with pytest.raises(StoreError) as caught:
        await blobs.size("0" * 64)
    assert str(caught.value).startswith("storage.packages: ")
    assert "\n" not in str(caught.value)


def test_unknown_store_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^storage\.packages: .*colour"):
        open_store(settings("s3", "").model_copy(update={"options": {"colour": SecretStr("red")}}), tmp_path)


_LARGE = """
import asyncio, hashlib, os, resource, sys
from pathlib import Path
from relay.control.packages.blobs import Blobs, open_store
from relay.settings.parts import PackageStorage
from relay.store.blobs import BlobStore

async def main(folder):
    blobs = Blobs(open_store(PackageStorage(), folder / "p"), BlobStore(folder / "s", 1 << 40), max_file_bytes=1 << 40)
    piece, number = os.urandom(8 << 20), 64
    whole = hashlib.sha256()
    for _ in range(number):
        whole.update(piece)
    name, size = whole.hexdigest(), number * len(piece)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(number):
        await blobs.receive(name, i * len(piece), piece)
    await blobs.finish(name, size)
    read = 0
    async for part in blobs.read(name):
        read += len(part)
    assert read == size
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_memory_does_not_grow_with_file_size(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(done.stdout) * unit < 100 << 20, "of 512 MiB"


async def test_damaged_file_is_removed_and_can_be_pushed_again(tmp_path: Path) -> None:
    blobs = Blobs(
        open_store(PackageStorage(), tmp_path / "store"), BlobStore(tmp_path / "spool", 1 << 30), max_file_bytes=1 << 30
    )
    content = b"x" * 1000
    sha256 = digest(content)
    for _ in range(2):
        assert await blobs.received(sha256) == (0, False)
        await blobs.receive(sha256, 0, content)
        await blobs.finish(sha256, len(content))
        await blobs.verify(sha256)
        assert not blobs.damaged
        (path,) = list((tmp_path / "store").rglob(sha256))
        path.write_bytes(b"y" + content[1:])
        await blobs.verify(sha256)
        assert list(blobs.damaged) == [sha256]
        await blobs.verify(sha256)

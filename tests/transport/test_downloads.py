"""Downloads on the agents' ports, plain (copied by the kernel) and over TLS (copied by this process)."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.testing.certificates import Authority
from relay.transport.downloads import Denied, Downloads, DownloadSettings, File
from tests.conftest import eventually
from tests.transport.stand import Stand, stand

CONTENT = bytes(range(256)) * 8000
NAME = hashlib.sha256(CONTENT).hexdigest()
Open = Callable[..., AbstractAsyncContextManager["Shop"]]


class Shop:
    """A door with one file behind it."""

    def __init__(self, stand: Stand, downloads: Downloads, refused: Counter[str], url: str) -> None:
        self.stand = stand
        self.downloads = downloads
        self.refused = refused
        self.url = url

    async def get(self, method: str = "GET", name: str = NAME, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        async with aiohttp.ClientSession() as session:
            url = f"{self.url}/v1/packages/{name}?token=x"
            async with session.request(method, url, headers=named, ssl=False) as response:
                return response.status, await response.read(), {k.lower(): v for k, v in response.headers.items()}


@pytest.fixture(params=["plain", "tls"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    (tmp_path / NAME).write_bytes(CONTENT)

    @asynccontextmanager
    async def opening(**settings: Any) -> AsyncIterator[Shop]:
        def find(sha256: str, query: dict[str, str]) -> File:
            if query != {"token": "x"}:
                raise Denied(403, "no token")
            if sha256 != NAME:
                raise Denied(503, "not here yet", retry_after_s=7)
            return File(tmp_path / NAME, NAME)

        values = {"max_downloads": 10, "stall_s": 5.0, "total": None, "each": None, **settings}
        refused: Counter[str] = Counter()
        downloads = Downloads(find, DownloadSettings(**values), refused=refused)
        tls = None
        if request.param == "tls":
            pair = Authority(tmp_path).issue("relay")
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(pair.cert_file, pair.key_file)
        async with stand(downloads=downloads, tls=tls) as it:
            scheme = "https" if tls else "http"
            yield Shop(it, downloads, refused, f"{scheme}://127.0.0.1:{it.port}")

    return opening


async def test_get_range_and_head(opened: Open) -> None:
    async with opened() as shop:
        status, content, headers = await shop.get()
        assert (status, content, headers["content-length"]) == (200, CONTENT, str(len(CONTENT)))
        assert headers["etag"] == f'"{NAME}"'
        assert "content-encoding" not in headers
        status, content, _ = await shop.get(Range="bytes=100-", If_Range=f'"{NAME}"')
        assert (status, content) == (206, CONTENT[100:])
        assert (await shop.get("HEAD"))[:2] == (200, b"")
        assert (await shop.get(Range="bytes=99999999-"))[0] == 416
        assert shop.downloads.sent_bytes == 2 * len(CONTENT) - 100
        assert (shop.downloads.done, shop.downloads.active) == (2, 0)


async def test_refusals(opened: Open) -> None:
    async with opened() as shop:
        status, content, headers = await shop.get(name="0" * 64)
        assert (status, content, headers["retry-after"]) == (503, b"not here yet\n", "7")
        assert (await shop.get("PUT"))[0] == 405
        assert (await shop.get(name="x"))[0] == 404
        assert (await shop.get(name=NAME + "&a=1" * 30))[0] == 404
        assert shop.refused == {"download_503": 1, "download_405": 1, "download_404": 2}


async def test_concurrent_downloads_are_limited(opened: Open) -> None:
    async with opened(max_downloads=1, each=200_000) as shop:
        slow = asyncio.create_task(shop.get())
        await eventually(lambda: shop.downloads.active)
        assert (await shop.get())[0] == 503
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow


async def test_bandwidth(opened: Open) -> None:
    async with opened(total=1_500_000) as shop:
        began = asyncio.get_running_loop().time()
        assert (await shop.get())[1] == CONTENT
        assert asyncio.get_running_loop().time() - began > 0.2


async def test_file_removed_meanwhile(opened: Open, tmp_path: Path) -> None:
    async with opened() as shop:
        (tmp_path / NAME).unlink()
        assert (await shop.get())[0] == 503

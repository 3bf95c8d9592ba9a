from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import pytest
from fastapi import FastAPI

from relay.aio.tasks import Tasks
from relay.control.heads import bounded
from relay.control.serving import Serving
from relay.errors import PortError
from tests.conftest import Programs
from tests.control.api.client import Client


async def test_app_is_served_on_several_ports_until_stopped() -> None:
    api = FastAPI()

    @api.get("/")
    async def root() -> str:
        return "here"

    tasks = Tasks()
    serving = Serving(tasks)
    ports = [await serving.open(api, "api", "server.api.endpoint", "127.0.0.1:0") for _ in range(2)]
    async with aiohttp.ClientSession() as client:
        for port in ports:
            async with client.get(f"http://127.0.0.1:{port}/") as answer:
                assert (await answer.json(), answer.headers["Server"]) == ("here", "opamp-relay")
    with pytest.raises(PortError, match=r"set server\.api\.endpoint, or --api HOST:PORT"):
        await serving.open(api, "api", "server.api.endpoint", f"127.0.0.1:{ports[0]}")
    await serving.stop()
    await tasks.close()
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get(f"http://127.0.0.1:{ports[0]}/")


async def test_attack_slow_heads_keep_nobody_out(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.control.serving.bounded", lambda: bounded(head_s=0.5, most=4))
    plane = await programs.control_plane()
    port = plane.ports["api"]
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    for _, writer in slow:
        writer.write(b"GET /health HTTP/1.1\r\nHost: ")
    assert (await Client(port).call("GET", "/health"))[0] == 200
    began = time.monotonic()
    for reader, writer in slow:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert time.monotonic() - began < 5


async def test_kept_connection_has_time_for_each_head(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.control.serving.bounded", lambda: bounded(head_s=0.3))
    plane = await programs.control_plane()
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.ports["api"])
    for _ in range(3):
        writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        while await reader.readline() != b"\r\n":
            pass
        await reader.readexactly(len(b'{"ready":true}'))
        await asyncio.sleep(0.2)
    writer.write(b"GET /re")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()

from __future__ import annotations

import aiohttp
import pytest
from fastapi import FastAPI

from relay.aio.tasks import Tasks
from relay.control.serving import Serving
from relay.errors import PortError


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

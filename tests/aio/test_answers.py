"""Reading answers, over real sockets."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay.aio.answers import body_of


async def test_a_body_is_read_up_to_its_bound() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 100)

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as client:
        async with client.get(server.make_url("/")) as response:
            assert await body_of(response, 100) == b"x" * 100
        async with client.get(server.make_url("/")) as response:
            with pytest.raises(ValueError, match="larger than 99 bytes"):
                await body_of(response, 99)

"""A client of the admin API, for tests."""

from __future__ import annotations

from typing import Any

import aiohttp

from relay.control.app import ControlPlane
from tests.conftest import Programs


class Client:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def call(self, method: str, path: str, **more: object) -> tuple[int, object]:
        async with aiohttp.ClientSession() as client, client.request(method, self.url + path, **more) as answer:  # type: ignore[arg-type]
            if "json" in answer.content_type:
                return answer.status, await answer.json(content_type=None)
            return answer.status, await answer.text()


async def ask(plane: ControlPlane, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request: (status, JSON of the answer)."""
    return await Client(plane.ports["api"]).call(method, path, json=body)


async def started(programs: Programs) -> tuple[ControlPlane, Client]:
    plane = await programs.control_plane()
    return plane, Client(plane.ports["api"])


def body(*texts: str, dry_run: bool = False) -> dict[str, object]:
    return {"sources": [{"source": "f.yaml", "text": "".join(texts)}], "dry_run": dry_run}

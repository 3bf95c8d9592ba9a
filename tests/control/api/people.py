"""People with roles, for tests of the admin API."""

from __future__ import annotations

from typing import Any

from relay.control.access.actor import SYSTEM
from relay.control.access.roles import Grant, Role
from relay.control.app import ControlPlane
from relay.control.credentials.tokens import TokenRequest
from tests.conftest import Programs
from tests.control.api.client import Client

TOKENS = {"admin": {"auth": {"type": "token"}}}


class Person:
    """Calls the API with a token."""

    def __init__(self, client: Client, token: str) -> None:
        self._client = client
        self.token = token

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return await self._client.call(method, f"/api/v1/{path}", headers=headers, **more)

    async def status(self, method: str, path: str, **more: Any) -> int:
        return (await self.call(method, path, **more))[0]


async def guarded(programs: Programs, **more: Any) -> tuple[ControlPlane, Client]:
    """A control plane that asks people for tokens."""
    plane = await programs.control_plane(**TOKENS, **more)
    return plane, Client(plane.ports["api"])


async def person(plane: ControlPlane, client: Client, role: str, name: str = "", **scope: str) -> Person:
    request = TokenRequest(role, Grant(Role(role), scope), 3600, owner=name or role)
    _, token = await plane.credentials.tokens.create(request, actor=SYSTEM)
    return Person(client, token)

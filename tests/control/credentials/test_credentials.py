from __future__ import annotations

from relay.control.access.roles import Grant, Role
from relay.control.app import ControlPlane
from relay.control.credentials.keys import KeyRequest
from relay.control.credentials.tokens import TokenRequest
from tests.control.actors import ANN


async def test_what_ended_long_ago_is_forgotten(plane: ControlPlane) -> None:
    credentials = plane.credentials
    await credentials.keys.create(KeyRequest("a", True, expires_s=60), actor=ANN)
    await credentials.tokens.create(TokenRequest("ci", Grant(Role.VIEWER), 60), actor=ANN)
    created_ms = next(iter(plane.ledger.state.api_keys)).created_ms
    await credentials.forget_expired(created_ms + 31 * 86_400_000 + 120_000)
    assert (len(plane.ledger.state.api_keys), plane.ledger.state.tokens) == (0, {})

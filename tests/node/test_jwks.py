"""Tokens of an issuer that publishes its keys, over real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from relay.auth.tokens import VerificationKey
from relay.node.jwks import FILE, KeySetSource
from relay.testing.clock import ManualClock
from tests.conftest import Programs, eventually
from tests.node.test_authentication import joined
from tests.wire import Refused


class Issuer:
    """Publishes the keys that a test gives it."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.content: bytes | None = None
        """What to answer instead of the key set."""
        self.status = 200
        self.requests = 0
        self.url = ""
        self.rotate()

    def rotate(self) -> str:
        kid = f"key-{len(self.keys) + 1}"
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())
        return kid

    def token(self, subject: str, kid: str = "key-1") -> str:
        now = time.time()
        claims = {"sub": subject, "iat": now, "exp": now + 600}
        return jwt.encode(claims, self.keys[kid], "ES256", headers={"kid": kid})

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        entries = [
            {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": kid}
            for kid, key in self.keys.items()
        ]
        body = json.dumps({"keys": entries}).encode() if self.content is None else self.content
        return web.Response(body=body, status=self.status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    app = web.Application()
    app.router.add_get("/jwks", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield made
    await runner.cleanup()


class Seen:
    def __init__(self, url: str, folder: Path) -> None:
        self.keys: list[tuple[VerificationKey, ...]] = []
        self.clock = ManualClock(1000)
        self.source = KeySetSource(url, folder / FILE, clock=self.clock, changed=self.keys.append)


async def test_set_is_fetched_and_kept(issuer: Issuer, tmp_path: Path) -> None:
    seen = Seen(issuer.url, tmp_path)
    seen.source.load()
    assert (seen.source.problem, seen.keys, seen.source.age_s) == ("has not been fetched yet", [], float("inf"))
    await seen.source.fetch()
    await seen.source.fetch()
    assert [[key.id for key in keys] for keys in seen.keys] == [["key-1"]]
    seen.clock.advance(7)
    assert (seen.source.problem, seen.source.age_s) == ("", 7)
    again = Seen("http://127.0.0.1:1/", tmp_path)
    again.source.load()
    assert [key.id for key in again.keys[0]] == ["key-1"]
    await again.source.fetch()
    assert again.source.problem
    assert len(again.keys) == 1


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"{", 200, "Expecting"),
        (b"{}", 200, "not a JSON Web Key Set"),
        (b'{"keys": []}', 200, "no RSA"),
        (json.dumps({"keys": [{}] * 101}).encode(), 200, "101 keys are more than the maximum"),
        (b" " * ((1 << 20) + 1), 200, "larger than 1048576 bytes"),
        (None, 302, "status 302"),
        (None, 500, "status 500"),
    ],
)
async def test_attack_sets_that_are_none(
    issuer: Issuer, tmp_path: Path, content: bytes | None, status: int, reason: str
) -> None:
    seen = Seen(issuer.url, tmp_path)
    await seen.source.fetch()
    issuer.content, issuer.status = content, status
    await seen.source.fetch()
    assert reason in seen.source.problem
    assert len(seen.keys) == 1
    assert issuer.requests == 2, "redirects are not followed"


async def test_damaged_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x")
    seen = Seen("http://127.0.0.1:1/", tmp_path)
    seen.source.load()
    assert (seen.keys, seen.source.problem) == ([], "has not been fetched yet")


async def test_file_that_cannot_be_written(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen = Seen(issuer.url, tmp_path / "file")
    await seen.source.fetch()
    assert len(seen.keys) == 1


def auth(issuer: Issuer) -> dict[str, Any]:
    return {"type": "jwt", "jwt": {"jwks_url": issuer.url}}


async def test_agents_with_tokens_of_the_issuer(programs: Programs, issuer: Issuer) -> None:
    node = await programs.node_with_policy(auth=auth(issuer))
    await eventually(lambda: node.key_set is not None and not node.key_set.problem)
    agent, _ = await joined(node, "websocket", "x", issuer.token("agent-001"))
    record = node.registry.get(agent.uid)
    assert record is not None
    assert record.agent_id == "agent-001"
    stranger = ec.generate_private_key(ec.SECP256R1())
    now = time.time()
    claims = {"sub": "a", "iat": now, "exp": now + 60}
    for forged in (
        jwt.encode(claims, stranger, "ES256", headers={"kid": "key-1"}),
        jwt.encode(claims, "k" * 32, "HS256", headers={"kid": "key-1"}),
    ):
        with pytest.raises(Refused):
            await joined(node, "websocket", "x", forged)
    await agent.close()


async def test_new_key_is_fetched_when_a_token_names_it(
    programs: Programs, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.node.jwks._LEAST_S", 0.05)
    node = await programs.node_with_policy(auth=auth(issuer))
    await eventually(lambda: issuer.requests == 1)
    fresh = issuer.token("agent-002", issuer.rotate())
    with pytest.raises(Refused):
        await joined(node, "websocket", "x", fresh)
    await eventually(lambda: issuer.requests == 2)

    async def is_served() -> bool:
        try:
            agent, _ = await joined(node, "websocket", "x", fresh)
        except Refused:
            return False
        await agent.close()
        return True

    await eventually(is_served)


async def test_issuer_that_is_away_stops_nobody(programs: Programs, issuer: Issuer) -> None:
    node = await programs.node_with_policy(auth=auth(issuer))
    await eventually(lambda: node.key_set is not None and not node.key_set.problem)
    await programs.stop(node)
    again = await programs.node(auth={"type": "jwt", "jwt": {"jwks_url": "http://127.0.0.1:1/jwks"}})
    agent, _ = await joined(again, "websocket", "x", issuer.token("agent-001"))
    assert await eventually(lambda: [p for p in again.condition().status["degraded"] if "jwks_url" in p])
    await agent.close()

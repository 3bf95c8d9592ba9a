"""The join port, over real sockets and TLS."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp

from relay.auth.join_tokens import read_join_token
from relay.control.app import ControlPlane
from tests.conftest import Programs
from tests.control.join.joining import csr, identities, token, with_tls


async def call(plane: ControlPlane, method: str, path: str, **more: Any) -> tuple[int, Any]:
    context = ssl.create_default_context(cadata=identities(plane).trust.authorities.decode())
    url = f"https://127.0.0.1:{plane.ports['join']}{path}"
    async with aiohttp.ClientSession() as client, client.request(method, url, ssl=context, **more) as answer:
        return answer.status, await answer.json(content_type=None)


async def request(plane: ControlPlane, **changes: Any) -> dict[str, Any]:
    made = read_join_token(await token(plane))
    content = {"id": made.id, "secret": made.secret, "csr": csr(), "name": "one", **changes}
    return {key: value for key, value in content.items() if value is not None}


async def test_join_and_trust(programs: Programs) -> None:
    plane = await with_tls(programs)
    status, trust = await call(plane, "GET", "/v1/trust")
    assert (status, set(trust["key_sets"][0])) == (200, {"payload", "key", "signature"})
    status, answer = await call(plane, "POST", "/v1/join", json=await request(plane))
    assert (status, set(answer)) == (200, {"certificate", "ca", "key_sets"})
    assert answer["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    assert answer["key_sets"] == trust["key_sets"]


async def test_statuses(programs: Programs) -> None:
    plane = await with_tls(programs)
    for changes in (
        {"csr": None},
        {"csr": "x"},
        {"name": "a/b"},
        {"name": ""},
        {"secret": 7},
        {"more": 1},
        {"csr": "x" * 20_000},
    ):
        assert (await call(plane, "POST", "/v1/join", json=await request(plane, **changes)))[0] == 400, changes
    status, answer = await call(plane, "POST", "/v1/join", json=await request(plane, secret="wrong"))
    assert (status, "not accepted" in answer["detail"]) == (403, True)
    assert (await call(plane, "POST", "/v1/join", json=await request(plane)))[0] == 200
    assert (await call(plane, "POST", "/v1/join", json=await request(plane)))[0] == 409
    assert (await call(plane, "POST", "/v1/renew", json={"csr": csr()}))[0] == 403
    assert (await call(plane, "POST", "/v1/renew", data=b"x" * 70_000))[0] == 413
    for path in ("/api/v1/agents", "/metrics", "/health", "/openapi.json"):
        assert (await call(plane, "GET", path))[0] == 404


async def test_attack_guessing_secrets(programs: Programs) -> None:
    plane = await with_tls(programs)
    wrong = await request(plane, secret="wrong")
    statuses = [(await call(plane, "POST", "/v1/join", json=wrong))[0] for _ in range(11)]
    assert (statuses[:9], statuses[9:]) == ([403] * 9, [429] * 2)

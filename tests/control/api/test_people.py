"""Who may call the admin API, over real sockets."""

from __future__ import annotations

import asyncio
import time

import pytest

from relay.auth.secrets import TOKEN_FORM
from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import Client, body, started
from tests.control.api.people import guarded, person


async def test_only_the_word_is_told_without_a_token(programs: Programs) -> None:
    _, client = await guarded(programs)
    assert await client.call("GET", "/health") == (200, {"status": "ok"})
    assert await client.call("GET", "/ready") == (200, {"ready": True})
    assert await client.call("GET", "/api/v1/auth/config") == (200, {"type": "token", "device_flow": False})
    for path in ("/metrics", "/api/v1/agents", "/api/v1/openapi.json", "/api/v1/unknown", "/"):
        assert (await client.call("GET", path))[0] == 401, path


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic YTpi",
        "Bearer",
        "Bearer x",
        "Bearer " + TOKEN_FORM.make(bytes(TOKEN_FORM.chance_bytes)),
        "Bearer opamp_" + "a" * 32,
        "Bearer " + "x" * 9000,
    ],
)
async def test_attack_tokens_that_are_none(programs: Programs, authorization: str) -> None:
    plane, client = await guarded(programs)
    status, answer = await client.call("GET", "/api/v1/agents", headers={"Authorization": authorization})
    assert status == 401
    assert isinstance(answer, dict)
    assert "Bearer TOKEN" in answer["detail"]
    assert plane.metrics.denied["credential"] == 1


async def test_attack_token_with_a_flipped_character_or_twice(programs: Programs) -> None:
    plane, client = await guarded(programs)
    ann = await person(plane, client, "admin", "ann")
    assert await ann.status("GET", "agents") == 200
    wrong = ann.token[:-7] + ("a" if ann.token[-7] != "a" else "b") + ann.token[-6:]
    assert (await client.call("GET", "/api/v1/agents", headers={"Authorization": f"Bearer {wrong}"}))[0] == 401
    port = int(client.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    header = f"Authorization: Bearer {ann.token}\r\n"
    writer.write(f"GET /api/v1/agents HTTP/1.1\r\nHost: a\r\n{header}{header}\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()


async def test_deleted_and_ended_tokens_are_refused_at_once(programs: Programs) -> None:
    plane, client = await guarded(programs)
    admin, ann = await person(plane, client, "admin"), await person(plane, client, "viewer", "ann")
    token = next(t for t in plane.ledger.state.tokens.values() if t.owner == "ann")
    assert await ann.status("GET", "agents") == 200
    assert await admin.status("DELETE", f"tokens/{token.id}") == 200
    assert await ann.status("GET", "agents") == 401
    status, made = await admin.call("POST", "tokens", json={"name": "x", "role": "viewer", "expires_s": 1})
    assert status == 200
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await client.call("GET", "/api/v1/agents", headers=headers))[0] == 200
    await asyncio.sleep(1.1)
    assert (await client.call("GET", "/api/v1/agents", headers=headers))[0] == 401


async def test_attack_claiming_to_be_somebody_else(programs: Programs) -> None:
    plane, client = await guarded(programs)
    ann = await person(plane, client, "author", "ann")
    assert await ann.status("POST", "apply", json=body(TEMPLATE), headers={"X-OpAMP-Actor": "root"}) == 400
    assert await ann.status("POST", "apply", json=body(TEMPLATE)) == 200
    entry = (await plane.audit.listing())[-1]
    assert (entry["actor"], entry["verified"], entry["address"]) == ("ann", True, "127.0.0.1")
    assert entry["credential"].startswith("token-")
    assert (await plane.audit.verify())["ok"]


async def test_four_eyes_are_two_people_and_not_two_tokens(programs: Programs) -> None:
    plane, client = await guarded(programs, policies={"config_update": {"approval_required": True, "four_eyes": True}})
    ann, again = [await person(plane, client, role, "ann") for role in ("author", "approver")]
    bob = await person(plane, client, "approver", "bob")
    assert await ann.status("POST", "apply", json=body(TEMPLATE, assignment("a"))) == 200
    (rollout,) = (await ann.call("GET", "rollouts"))[1]
    approval = {"digest": rollout["digest"]}
    assert await ann.status("POST", "rollouts/a-1/approve", json=approval) == 403
    assert await again.status("POST", "rollouts/a-1/approve", json=approval) == 409
    assert await bob.status("POST", "rollouts/a-1/approve", json=approval) == 200


async def test_refusals_of_known_people_are_audited_once_a_second(programs: Programs) -> None:
    plane, client = await guarded(programs)
    ann = await person(plane, client, "viewer", "ann")
    for _ in range(5):
        assert await ann.status("POST", "apply", json=body(TEMPLATE)) == 403
    denied = [e for e in await plane.audit.listing() if e["action"] == "denied"]
    assert [(e["actor"], e["subject"]) for e in denied] == [("ann", "POST /api/v1/apply")]
    assert "needs the verb write" in denied[0]["reason"]
    assert plane.metrics.denied["role"] == 5


async def test_address_that_fails_often_waits_and_a_good_token_never(programs: Programs) -> None:
    plane, client = await guarded(programs)
    ann = await person(plane, client, "viewer", "ann")
    for _ in range(9):
        await client.call("GET", "/api/v1/agents")
    began = time.monotonic()
    late = asyncio.ensure_future(client.call("GET", "/api/v1/agents"))
    assert await ann.status("GET", "agents") == 200
    assert not late.done()
    assert (await late)[0] == 401
    assert time.monotonic() - began >= 1


async def test_one_credential_cannot_take_all(programs: Programs) -> None:
    plane, client = await guarded(programs)
    ann, bob = await person(plane, client, "viewer", "ann"), await person(plane, client, "viewer", "bob")
    statuses = [await ann.status("GET", "auth/whoami") for _ in range(120)]
    assert 429 in statuses
    assert await bob.status("GET", "auth/whoami") == 200


async def test_addresses(programs: Programs) -> None:
    plane = await programs.control_plane(admin={"auth": {"type": "none", "allow": ["192.0.2.0/24"]}})
    assert (await Client(plane.ports["api"]).call("GET", "/api/v1/agents"))[0] == 403


async def test_nobody_is_asked_on_loopback_by_default(programs: Programs) -> None:
    _, client = await started(programs)
    assert (await client.call("GET", "/api/v1/auth/whoami"))[1] == {
        "user": "anonymous",
        "role": "admin",
        "scope": {},
        "grants": [{"role": "admin", "scope": {}}],
        "groups": [],
        "credential": "",
        "expires": None,
    }
    assert await client.call("GET", "/api/v1/auth/config") == (200, {"type": "none", "device_flow": False})


async def test_metrics_port_serves_metrics_alone(programs: Programs) -> None:
    plane, _ = await started(programs)
    client = Client(plane.ports["metrics"])
    for path in ("/metrics", "/health", "/ready"):
        assert (await client.call("GET", path))[0] == 200
    assert (await client.call("GET", "/api/v1/agents"))[0] == 404
    assert (await client.call("POST", "/api/v1/apply", json=body(TEMPLATE)))[0] == 404

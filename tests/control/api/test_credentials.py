from __future__ import annotations

import json

from tests.conftest import Programs, eventually
from tests.control.api.client import started
from tests.control.api.people import guarded, person


async def test_keys_over_http(programs: Programs) -> None:
    _, client = await started(programs)
    status, made = await client.call("POST", "/api/v1/keys", json={"agent": "agent-001", "labels": {"team": "a"}})
    assert isinstance(made, dict)
    assert (status, made["kind"], made["subject"]) == (200, "agent", "agent-001")
    secret = made["key"]
    _, rotated = await client.call("POST", f"/api/v1/keys/{made['id']}/rotate", json={"overlap_s": 0})
    assert isinstance(rotated, dict)
    _, listed = await client.call("GET", "/api/v1/keys")
    assert isinstance(listed, list)
    assert [(k["id"], k["replaced_by"]) for k in listed] == [(made["id"], rotated["id"]), (rotated["id"], "")]
    assert secret not in json.dumps(listed)
    assert (await client.call("DELETE", f"/api/v1/keys/{made['id']}"))[0] == 200
    assert (await client.call("DELETE", f"/api/v1/keys/{made['id']}"))[0] == 404
    for wrong in (
        {},
        {"agent": "a", "fleet": "b"},
        {"agent": "a", "expires_s": 0},
        {"agent": "a", "labels": {"region": "x"}},
    ):
        assert (await client.call("POST", "/api/v1/keys", json=wrong))[0] == 422, wrong


async def test_tokens_over_http(programs: Programs) -> None:
    plane, client = await guarded(programs)
    admin = await person(plane, client, "admin")
    status, made = await admin.call("POST", "tokens", json={"name": "ci", "role": "author", "scope": {"team": "a"}})
    assert (status, made["owner"], made["scope"]) == (200, "admin", {"team": "a"})
    _, listed = await admin.call("GET", "tokens")
    assert made["token"] not in json.dumps(listed)
    assert made["id"] in [token["id"] for token in listed]
    assert await admin.status("POST", "tokens", json={"name": "ci", "role": "king"}) == 422
    assert await admin.status("DELETE", f"tokens/{made['id']}") == 200


async def test_keys_are_listed_within_the_scope(programs: Programs) -> None:
    plane, client = await guarded(programs)
    admin, ann = await person(plane, client, "admin"), await person(plane, client, "operator", "ann", team="a")
    for team in ("a", "b"):
        assert await admin.status("POST", "keys", json={"fleet": team, "labels": {"team": team}}) == 200
    assert [key["subject"] for key in (await ann.call("GET", "keys"))[1]] == ["a"]
    assert await ann.status("POST", "keys", json={"fleet": "c", "labels": {"team": "b"}}) == 403


async def test_revocations_over_http(programs: Programs) -> None:
    plane, client = await started(programs)
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    body = {"kind": "subject", "value": "web", "reason": "stolen"}
    status, made = await client.call("POST", "/api/v1/revocations", json=body)
    assert isinstance(made, dict)
    assert (status, made["kind"], made["value"]) == (200, "subject", "web")

    async def in_force() -> bool:
        _, shown = await client.call("GET", f"/api/v1/revocations/{made['id']}")
        assert isinstance(shown, dict)
        return bool(shown["regions"] == [{"region": "local", "in_force": True, "not_heard_since": ""}])

    await eventually(in_force)
    assert node.policy.access.revoked == {("subject", "web")}
    _, listed = await client.call("GET", "/api/v1/revocations")
    assert isinstance(listed, list)
    assert [r["id"] for r in listed] == [made["id"]]
    assert (await client.call("DELETE", f"/api/v1/revocations/{made['id']}"))[0] == 200
    await eventually(lambda: not node.policy.access.revoked)
    for wrong in ({**body, "kind": "node"}, {**body, "value": ""}, {**body, "reason": ""}):
        assert (await client.call("POST", "/api/v1/revocations", json=wrong))[0] == 422

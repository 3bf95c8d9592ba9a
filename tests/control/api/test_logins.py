"""People who log in at a real OpenID provider, over the admin API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from relay.control.app import ControlPlane
from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import Client, body
from tests.control.api.people import Person, person
from tests.openid.provider import CLIENT_ID, SECRET, OpenIdProvider, browse, openid_provider

REDIRECT = "http://127.0.0.1:5/callback"


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with openid_provider() as started:
        yield started


def oidc(folder: Path, provider: OpenIdProvider, **more: Any) -> dict[str, Any]:
    """The settings of `admin`."""
    (folder / "client-secret").write_text(SECRET)
    settings = {"issuer": provider.issuer, "client_id": CLIENT_ID, "client_secret_file": str(folder / "client-secret")}
    return {"auth": {"type": "oidc", "oidc": {**settings, **more}}}


async def started(programs: Programs, provider: OpenIdProvider, **more: Any) -> tuple[ControlPlane, Client, Person]:
    """A control plane with two bindings, and its admin."""
    plane = await programs.control_plane(admin=oidc(programs.folder, provider, **more))
    client = Client(plane.ports["api"])
    admin = await person(plane, client, "admin")
    assert await admin.status("POST", "apply", json=body(BINDINGS)) == 200
    return plane, client, admin


BINDINGS = """
apiVersion: opamp.io/v1
kind: RoleBinding
metadata: {name: platform}
spec: {role: author, subjects: [{group: platform}]}
---
apiVersion: opamp.io/v1
kind: RoleBinding
metadata: {name: viewers}
spec: {role: viewer, subjects: [{group: viewers}]}
---
apiVersion: opamp.io/v1
kind: RoleBinding
metadata: {name: team-a}
spec: {role: author, subjects: [{group: team-a}], scope: {labels: {team: a}}}
"""


async def log_in(client: Client, login: str) -> Person:
    _, begun = await client.call("POST", "/api/v1/auth/login", json={"redirect_uri": REDIRECT})
    assert isinstance(begun, dict)
    last = await browse(begun["url"], login, until=REDIRECT)
    query = {key: values[0] for key, values in parse_qs(urlsplit(last).query).items()}
    answer = {"login": begun["login"], "code": query["code"], "state": query["state"], "iss": query["iss"]}
    status, done = await client.call("POST", "/api/v1/auth/login", json=answer)
    assert isinstance(done, dict)
    assert status == 200, done
    return Person(client, done["token"])


async def test_person_does_what_role_bindings_allow(programs: Programs, provider: OpenIdProvider) -> None:
    plane, client, admin = await started(programs, provider)
    alice = await log_in(client, "alice")
    who = (await alice.call("GET", "auth/whoami"))[1]
    assert (who["user"], who["role"], who["scope"]) == ("alice", "author", {})
    assert await alice.status("POST", "apply", json=body(TEMPLATE, assignment("a"))) == 200
    assert await alice.status("POST", "tokens", json={"name": "x", "role": "admin"}) == 403
    entries = (await admin.call("GET", "audit"))[1]
    assert {"login"} <= {entry["action"] for entry in entries if entry["actor"] == "alice"}
    # The binding goes, and with it what the open session may do.
    assert await admin.status("DELETE", "documents/rolebindings/platform") == 200
    status, refused = await alice.call("POST", "apply", json=body(assignment("a", rate=2)))
    assert (status, "person without a RoleBinding" in refused["detail"]) == (403, True)
    assert await alice.status("GET", "agents") == 403
    assert plane.metrics.denied["role"] > 0


async def test_several_bindings_add_up_and_do_not_widen_each_other(
    programs: Programs, provider: OpenIdProvider
) -> None:
    _, client, _ = await started(programs, provider)
    bob = await log_in(client, "bob")
    who = (await bob.call("GET", "auth/whoami"))[1]
    assert who["grants"] == [{"role": "author", "scope": {"team": "a"}}, {"role": "viewer", "scope": {}}]
    inside = assignment("a", selector="{labels: {team: a}}")
    assert await bob.status("POST", "apply", json=body(TEMPLATE, inside)) == 200
    assert await bob.status("POST", "apply", json=body(assignment("b", priority=1))) == 403
    assert (await bob.call("GET", "auth/can-i", params={"verb": "operate"}))[1]["allowed"] is False
    assert await bob.status("GET", "documents/templates", params={"reveal": "true"}) == 403, "it may read more"
    assert await bob.status("GET", "documents/templates") == 200
    assert await bob.status("POST", "apply", json=body(BINDINGS.replace("viewer,", "admin,"))) == 403


async def test_attack_session_after_logout(programs: Programs, provider: OpenIdProvider) -> None:
    plane, client, admin = await started(programs, provider)
    alice = await log_in(client, "alice")
    other = await log_in(client, "alice")
    assert await alice.status("POST", "auth/logout", json={}) == 200
    assert await alice.status("GET", "auth/whoami") == 401
    assert await other.status("GET", "auth/whoami") == 200
    assert await admin.status("POST", "auth/logout", json={}) == 404, "a token is deleted instead"
    await programs.stop(plane)
    again = await programs.control_plane(admin=oidc(programs.folder, provider))
    moved = Client(again.ports["api"])
    assert await Person(moved, other.token).status("GET", "auth/whoami") == 200
    assert await Person(moved, alice.token).status("GET", "auth/whoami") == 401


async def test_attack_one_person_with_two_credentials_is_one_pair_of_eyes(
    programs: Programs, provider: OpenIdProvider
) -> None:
    admin_settings = oidc(programs.folder, provider)
    policies = {"config_update": {"approval_required": True, "approvals_needed": 1, "four_eyes": True}}
    plane = await programs.control_plane(admin=admin_settings, policies=policies)
    client = Client(plane.ports["api"])
    admin = await person(plane, client, "admin", "root")
    assert (
        await admin.status(
            "POST",
            "apply",
            json=body(
                BINDINGS.replace(
                    "role: author, subjects: [{group: platform}]", "role: admin, subjects: [{group: platform}]"
                )
            ),
        )
        == 200
    )
    alice = await log_in(client, "alice")
    assert await alice.status("POST", "apply", json=body(TEMPLATE, assignment("a"))) == 200
    _, made = await alice.call("POST", "tokens", json={"name": "second", "role": "approver"})
    second = Person(client, made["token"])
    (rollout,) = (await alice.call("GET", "rollouts"))[1]
    path = f"rollouts/{rollout['name']}/approve"
    digest = {"digest": (await alice.call("GET", f"rollouts/{rollout['name']}"))[1]["digest"]}
    assert await second.status("POST", path, json=digest) == 409
    assert await alice.status("POST", path, json=digest) == 409
    assert await admin.status("POST", path, json=digest) == 200


async def test_without_a_provider_nobody_logs_in(programs: Programs) -> None:
    plane = await programs.control_plane(admin={"auth": {"type": "token"}})
    client = Client(plane.ports["api"])
    assert (await client.call("POST", "/api/v1/auth/login", json={"redirect_uri": REDIRECT}))[0] == 409
    assert (await client.call("GET", "/api/v1/auth/config"))[1] == {"type": "token", "device_flow": False}


async def test_bad_requests(programs: Programs, provider: OpenIdProvider) -> None:
    plane, client, _ = await started(programs, provider)
    for content, status in (
        ({}, 422),
        ({"redirect_uri": "http://evil/callback"}, 422),
        ({"device": True}, 403),
        ({"login": "x"}, 403),
        ({"login": "x", "code": "y"}, 403),
        ({"user": "x"}, 422),
        ({"redirect_uri": "x" * 1000}, 422),
    ):
        assert (await client.call("POST", "/api/v1/auth/login", json=content))[0] == status, content
    assert plane.metrics.denied["login"] == 3
    assert (await client.call("POST", "/api/v1/auth/login", data="x"))[0] == 415


async def test_device_login(programs: Programs, provider: OpenIdProvider) -> None:
    _, client, _ = await started(programs, provider, device_flow=True)
    assert (await client.call("GET", "/api/v1/auth/config"))[1] == {"type": "oidc", "device_flow": True}
    _, begun = await client.call("POST", "/api/v1/auth/login", json={"device": True})
    assert isinstance(begun, dict)
    status, waiting = await client.call("POST", "/api/v1/auth/login", json={"login": begun["login"]})
    assert isinstance(waiting, dict)
    assert (status, "token" in waiting) == (200, False)
    assert 0 < waiting["wait_s"] <= 1


async def test_attack_large_body_of_a_stranger(programs: Programs, provider: OpenIdProvider) -> None:
    _, client, admin = await started(programs, provider)
    large = {f"k{i}": i for i in range(5_000)}
    assert (await client.call("POST", "/api/v1/auth/login", json=large))[0] == 413
    status, answer = await admin.call("POST", "keys", json=large)
    assert (status, len(answer["problems"])) == (422, 20)


async def test_admin_ends_the_session_of_somebody_else(programs: Programs, provider: OpenIdProvider) -> None:
    plane, client, admin = await started(programs, provider)
    alice, bob = await log_in(client, "alice"), await log_in(client, "bob")
    ids = {session.user: key for key, session in plane.ledger.state.sessions.items()}
    assert await bob.status("DELETE", f"tokens/{ids['alice']}") == 403
    assert await admin.status("DELETE", f"tokens/{ids['alice']}") == 200
    assert await alice.status("GET", "auth/whoami") == 401
    assert await bob.status("DELETE", f"tokens/{ids['bob']}") == 200
    assert await bob.status("GET", "auth/whoami") == 401


async def test_attack_session_of_a_former_provider(programs: Programs, provider: OpenIdProvider) -> None:
    plane, client, _ = await started(programs, provider)
    alice = await log_in(client, "alice")
    await programs.stop(plane)
    again = await programs.control_plane(admin=oidc(programs.folder, provider, issuer="https://other.example"))
    assert await Person(Client(again.ports["api"]), alice.token).status("GET", "auth/whoami") == 401


async def test_person_without_a_binding_may_look_and_log_out(programs: Programs, provider: OpenIdProvider) -> None:
    _, client, _ = await started(programs, provider)
    mallory = await log_in(client, "mallory")
    who = (await mallory.call("GET", "auth/whoami"))[1]
    assert (who["user"], who["grants"], who["groups"]) == ("mallory", [], [])
    assert (await mallory.call("GET", "auth/can-i?verb=read"))[1]["allowed"] is False
    assert await mallory.status("GET", "agents") == 403
    assert await mallory.status("POST", "auth/logout", json={}) == 200

from __future__ import annotations

import pytest

from relay.auth.revocations import Kind
from relay.control.access.revocations import Revocation
from relay.control.app import ControlPlane
from relay.control.credentials import revocations as module
from relay.control.credentials.keys import KeyRequest
from relay.errors import Conflict, NotFound, Refused
from tests.conftest import Programs, eventually
from tests.control.actors import ANN, BOB
from tests.node.test_authentication import joined, token


async def test_revoked_once_and_taken_back(plane: ControlPlane) -> None:
    registry = plane.credentials.revocations
    first = await registry.revoke(Kind.JTI, "t-1", "stolen", actor=ANN)
    assert await registry.revoke(Kind.JTI, "t-1", "again", actor=BOB) == first == registry.get(first.id)
    assert registry.reach() == []
    await registry.unrevoke(first.id, actor=BOB)
    with pytest.raises(NotFound):
        await registry.unrevoke(first.id, actor=BOB)
    with pytest.raises(NotFound):
        registry.get(first.id)
    entries = [(e["actor"], e["action"], e["subject"]) for e in await plane.audit.listing()]
    assert entries == [("ann", "revoke", "jti/t-1"), ("bob", "unrevoke", "jti/t-1")]


async def test_revocations_are_bounded(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REVOCATIONS", 1)
    await plane.credentials.revocations.revoke(Kind.JTI, "1", "x", actor=ANN)
    with pytest.raises(Conflict, match="1 revocations, the maximum"):
        await plane.credentials.revocations.revoke(Kind.JTI, "2", "x", actor=ANN)


async def test_agent_of_a_shared_credential_is_refused_by_its_name(programs: Programs) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(b"k" * 32)
    plane = await programs.control_plane()
    auth = {"type": "jwt", "jwt": {"secret_key_file": str(key), "agent_id_claim": ""}}
    node = await programs.node(plane.ports["link"], auth=auth)
    await eventually(lambda: node.policy.accepted)
    agent, _ = await joined(node, "websocket", "one-of-many", token("web", secret=b"k" * 32))
    await eventually(lambda: len(plane.fleet.census) == 1)
    registry = plane.credentials.revocations
    with pytest.raises(Conflict, match="one-of-many has no credential of its own: it came with web's"):
        await registry.revoke(Kind.AGENT, "one-of-many", "x", actor=ANN)
    await registry.revoke(Kind.AGENT, "unknown", "x", actor=ANN)
    await registry.revoke(Kind.SUBJECT, "web", "x", actor=ANN)
    assert await agent.pipe.socket.close_code() == 1008  # type: ignore[attr-defined]
    (reach,) = await eventually(lambda: [r for r in registry.reach() if r.in_force])
    assert reach.plain() == {"region": "local", "in_force": True, "not_heard_since": ""}
    await programs.stop(node)


async def test_region_that_is_away_is_named(programs: Programs) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted and plane.fleet.census.nodes)
    state = plane.fleet.census.nodes["local/one"]
    await programs.stop(node)
    await eventually(lambda: not state.connected)
    state.departed = False  # as if it had been cut off
    (held,) = plane.credentials.revocations.reach()
    assert held.in_force, "it has all that was revoked"
    await plane.credentials.revocations.revoke(Kind.JTI, "t-1", "x", actor=ANN)
    await eventually(lambda: plane.publisher._is_current("local"))
    state.last_seen_ms = 1000
    for state.departed in (False, True):
        (reach,) = plane.credentials.revocations.reach()
        assert (reach.in_force, reach.not_heard_since) == (False, "1970-01-01T00:00:01.000Z")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.KEY, "opamp_jG72VsqdmfWUbn7U08Fwvey7CS49k7Pv"),
        (Kind.KEY, "nonsense"),
        (Kind.KEY, "KEY-0123456789"),
        (Kind.CERTIFICATE, "not hex"),
        (Kind.CERTIFICATE, "0"),
    ],
)
async def test_what_could_name_no_credential_is_refused(plane: ControlPlane, kind: Kind, value: str) -> None:
    with pytest.raises(Refused) as caught:
        await plane.credentials.revocations.revoke(kind, value, "x", actor=ANN)
    assert value not in str(caught.value), "it may be the secret itself"


async def test_serial_is_taken_in_any_spelling(plane: ControlPlane) -> None:
    registry = plane.credentials.revocations
    made = {
        (await registry.revoke(Kind.CERTIFICATE, text, "x", actor=ANN)).value for text in ("0A:BC", "0x0abc", "abc")
    }
    assert made == {"abc"}


async def test_what_nobody_has_is_told(programs: Programs) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(b"k" * 32)
    plane = await programs.control_plane()
    auth = {"type": "any", "jwt": {"secret_key_file": str(key)}}
    node = await programs.node(plane.ports["link"], auth=auth)
    await eventually(lambda: node.policy.accepted)
    agent, _ = await joined(node, "websocket", "one", token("agent-001", secret=b"k" * 32))
    await eventually(lambda: plane.fleet.census.by_id("agent-001"))
    registry = plane.credentials.revocations
    made, _ = await plane.credentials.keys.create(KeyRequest("web", False), actor=ANN)

    async def known(kind: Kind, value: str) -> bool | None:
        return await registry.is_known(Revocation(kind, value, "", "", 0))

    assert [await known(Kind.SUBJECT, name) for name in ("web", "agent-001", "wbe")] == [True, True, False]
    assert [await known(Kind.AGENT, name) for name in ("agent-001", "agent-002")] == [True, False]
    assert [await known(Kind.KEY, name) for name in (made.id, "key-0000000000")] == [True, False]
    assert await known(Kind.JTI, "x") is None
    await agent.close()

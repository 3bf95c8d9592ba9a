"""Agents with API keys: over real sockets, on every transport."""

from __future__ import annotations

import asyncio
import sqlite3

import grpc
import pytest

from relay.auth.revocations import Kind
from relay.control.access.actor import SYSTEM
from relay.control.access.keys import ApiKey
from relay.control.app import ControlPlane
from relay.control.credentials.keys import KeyRequest
from relay.errors import StoreError
from relay.node.app import Node
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.node.test_authentication import TRANSPORTS, UNAUTHENTICATED, joined, rate_of
from tests.wire import Refused


async def stand(programs: Programs, *documents: str, region: str = "local") -> tuple[ControlPlane, Node]:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, *(documents or (assignment("all"),)))
    node = await programs.node(plane.ports["link"], region=region, auth={"type": "api_key"})
    await eventually(lambda: node.policy.accepted)
    return plane, node


async def made(plane: ControlPlane, node: Node, request: KeyRequest) -> tuple[ApiKey, str]:
    key, secret = await plane.credentials.keys.create(request, actor=SYSTEM)
    await eventually(lambda: node.policy.access.key(key.digest[:5]))
    return key, secret


async def refused(node: Node, transport: str, secret: str) -> bool:
    with pytest.raises(Refused) as caught:
        await joined(node, transport, "x", secret)
    return bool(caught.value.args[0] == UNAUTHENTICATED[transport])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_agent_with_a_key_is_served(programs: Programs, transport: str) -> None:
    selector = "{labels: {team: a}, agent_ids: [agent-001]}"
    plane, node = await stand(programs, assignment("one", selector=selector))
    key, secret = await made(plane, node, KeyRequest("agent-001", True, {"team": "a"}))
    agent, answer = await joined(node, transport, "its-own-word", secret)
    assert rate_of(answer) == b"rate: 1"
    record = node.registry.get(agent.uid)
    assert record is not None
    assert record.agent_id == "agent-001"
    assert record.credential is not None
    assert (record.credential.subject, record.credential.id) == ("agent-001", key.id)
    assert node.metrics.authentications["api_key", "ok"] >= 1
    await agent.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_attack_keys_that_are_none(programs: Programs, transport: str) -> None:
    plane, node = await stand(programs)
    _, secret = await made(plane, node, KeyRequest("agent-001", True))
    flipped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for wrong in ("", "opamp_", flipped, secret[:-1], secret + "0", "opampt_" + secret[6:]):
        assert await refused(node, transport, wrong)


async def test_attack_key_of_another_region(programs: Programs) -> None:
    plane, node = await stand(programs, region="eu")
    _, ours = await made(plane, node, KeyRequest("a", True, regions=["eu"]))
    key, theirs = await plane.credentials.keys.create(KeyRequest("b", True, regions=["us"]), actor=SYSTEM)
    assert node.policy.access.key(key.digest[:5]) is None
    assert await refused(node, "websocket", theirs)
    agent, _ = await joined(node, "websocket", "x", ours)
    await agent.close()
    held = b"".join(node.policy.receiver.held.values())
    assert key.digest.hex().encode() not in held


@pytest.mark.parametrize("way", ["revoke key", "revoke subject", "delete", "rotate"])
async def test_key_that_was_taken_away_ends_open_sessions(programs: Programs, way: str) -> None:
    plane, node = await stand(programs)
    key, secret = await made(plane, node, KeyRequest("agent-001", True))
    agents = {kind: (await joined(node, kind, "", secret))[0] for kind in TRANSPORTS}
    _, other_secret = await made(plane, node, KeyRequest("b", True))
    other, _ = await joined(node, "websocket", "", other_secret)
    credentials = plane.credentials
    if way == "revoke key":
        await credentials.revocations.revoke(Kind.KEY, key.id, "x", actor=SYSTEM)
    elif way == "revoke subject":
        await credentials.revocations.revoke(Kind.SUBJECT, "agent-001", "x", actor=SYSTEM)
    elif way == "delete":
        await credentials.keys.delete(key.id, actor=SYSTEM)
    else:
        await credentials.keys.rotate(key.id, 0, actor=SYSTEM)
    assert await agents["websocket"].pipe.socket.close_code() == 1008  # type: ignore[attr-defined]
    with pytest.raises(Refused) as caught:
        await agents["grpc"].pipe.pushed()
    assert caught.value.args[0] == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(Refused):
        await agents["http"].heartbeat()
    for transport in TRANSPORTS:
        assert await refused(node, transport, secret)
    assert (await other.heartbeat()).instance_uid == other.uid


async def test_rotation_overlaps(programs: Programs) -> None:
    plane, node = await stand(programs)
    key, secret = await made(plane, node, KeyRequest("agent-001", True))
    fresh, new_secret = await plane.credentials.keys.rotate(key.id, 1.5, actor=SYSTEM)
    await eventually(lambda: node.policy.access.key(fresh.digest[:5]))
    for good in (secret, new_secret):
        agent, _ = await joined(node, "http", "x", good)
        assert node.registry.get(agent.uid) is not None
    await asyncio.sleep(1.6)
    assert await refused(node, "http", secret)
    await joined(node, "http", "x", new_secret)


async def test_keys_and_revocations_outlive_a_restart_without_the_control_plane(programs: Programs) -> None:
    plane, node = await stand(programs)
    key, secret = await made(plane, node, KeyRequest("agent-001", True))
    gone, gone_secret = await made(plane, node, KeyRequest("b", True))
    await plane.credentials.revocations.revoke(Kind.KEY, gone.id, "x", actor=SYSTEM)
    await eventually(lambda: node.policy.access.revoked)
    await programs.stop(plane)
    await programs.stop(node)
    again = await programs.node(auth={"type": "api_key"})
    agent, answer = await joined(again, "websocket", "x", secret)
    assert rate_of(answer) == b"rate: 1"
    assert await refused(again, "websocket", gone_secret)
    await agent.close()
    assert key.id in plane.ledger.state.api_keys


async def test_revocation_is_in_force_although_the_disk_is_full(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, node = await stand(programs)
    key, secret = await made(plane, node, KeyRequest("agent-001", True))
    agent, _ = await joined(node, "websocket", "x", secret)

    async def full(*_: object) -> None:
        raise StoreError("no space left on device")

    monkeypatch.setattr(node.store, "commit", full)
    await plane.credentials.revocations.revoke(Kind.KEY, key.id, "x", actor=SYSTEM)
    assert await agent.pipe.socket.close_code() == 1008  # type: ignore[attr-defined]
    assert await refused(node, "websocket", secret)


async def test_attack_damaged_revocations_bring_nobody_back(programs: Programs) -> None:
    plane, node = await stand(programs)
    key, secret = await made(plane, node, KeyRequest("agent-001", True))
    await plane.credentials.revocations.revoke(Kind.KEY, key.id, "x", actor=SYSTEM)
    await eventually(lambda: node.policy.access.revoked)
    await programs.stop(plane)
    await programs.stop(node)
    file = programs.folder / "node-local-one" / "node.sqlite3"
    with sqlite3.connect(file) as database:
        (value,) = database.execute("SELECT value FROM entries WHERE key = ?", (b"Revocations/agents",)).fetchone()
        flipped = value[:-2] + bytes([value[-2] ^ 1]) + value[-1:]
        database.execute("UPDATE entries SET value = ? WHERE key = ?", (flipped, b"Revocations/agents"))
    database.close()
    for _ in range(2):
        again = await programs.node(auth={"type": "api_key"})
        with pytest.raises(Refused) as caught:
            await joined(again, "websocket", "x", secret)
        assert caught.value.args[0] == 503
        await programs.stop(again)

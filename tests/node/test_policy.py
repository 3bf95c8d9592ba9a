"""Policy at a node, also from a control plane that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.control.app import ControlPlane
from relay.errors import StoreError
from relay.node.app import Node
from relay.store.local import LocalStore
from relay.testing.control_plane import ScriptedControlPlane
from tests.conftest import TEMPLATE as BASIC
from tests.conftest import Programs, apply, assignment, eventually
from tests.control.api.client import ask
from tests.policy.published import TEMPLATE, published, resources, revision
from tests.wire import TestAgent


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedControlPlane]:
    scripted = ScriptedControlPlane()
    await scripted.start()
    yield scripted
    await scripted.stop()


async def rate(programs: Programs, node: object) -> bytes:
    agent = await TestAgent.over("websocket", node.ports)  # type: ignore[attr-defined]
    body = (await agent.hello()).remote_config.config.config_map[""].body
    await agent.close()
    return body.splitlines()[0] if body else b""


async def test_policy_is_acknowledged_and_survives_a_restart(
    programs: Programs, upstream: ScriptedControlPlane
) -> None:
    node = await programs.node(upstream.port)
    assert not node.condition().ready
    upstream.send(resources(published(stable=revision(4))), (1, 1))
    ack = await upstream.acks.get()
    assert not ack.rejected
    assert node.condition().ready
    assert await rate(programs, node) == b"rate: 4"
    await programs.stop(node)
    await upstream.stop()
    again = await programs.node(1)
    assert again.condition().ready, "ready without its control plane"
    assert await rate(programs, again) == b"rate: 4"


async def test_older_manifest_is_refused(programs: Programs, upstream: ScriptedControlPlane) -> None:
    node = await programs.node(upstream.port)
    upstream.send(resources(published(stable=revision(5))), (1, 5))
    await upstream.acks.get()
    upstream.send(resources(published(stable=revision(4))), (1, 4))
    assert "older" in (await upstream.acks.get()).refused
    upstream.send(resources(), (1, 6), region="elsewhere")
    assert "region" in (await upstream.acks.get()).refused
    assert await rate(programs, node) == b"rate: 5"


async def test_bad_resources_are_rejected_one_by_one(programs: Programs, upstream: ScriptedControlPlane) -> None:
    node = await programs.node(upstream.port)
    upstream.send(resources(published("a", stable=revision(1)), published("b", stable=revision(1), slot="b")), (1, 1))
    await upstream.acks.get()
    wrong = {
        **resources(published("a", stable=revision(1000)), published("b", stable=revision(2), slot="b")),
        "ConfigAssignment/c": b"no JSON",
    }
    upstream.send(wrong, (1, 2), corrupt=frozenset({"RegionVariables/local@0"}))
    ack = await upstream.acks.get()
    assert {r.name for r in ack.rejected} == {"ConfigAssignment/a", "ConfigAssignment/c"}
    agent = await TestAgent.over("websocket", node.ports)
    config = (await agent.hello()).remote_config.config.config_map
    assert config[""].body.splitlines()[0] == b"rate: 1", "the last good one"
    assert config["b"].body.splitlines()[0] == b"rate: 2", "the rest is applied"
    await agent.close()
    condition = node.condition()
    assert condition.ready
    assert condition.status["degraded"] == ["policy: 2 resources rejected"]


async def test_damaged_resource_is_rejected(programs: Programs, upstream: ScriptedControlPlane) -> None:
    node = await programs.node(upstream.port)
    upstream.send(resources(published(stable=revision(1))), (1, 1))
    await upstream.acks.get()
    upstream.send(resources(published(stable=revision(2))), (1, 2), corrupt=frozenset({"ConfigAssignment/a"}))
    ack = await upstream.acks.get()
    assert [(r.name, r.reason) for r in ack.rejected] == [("ConfigAssignment/a", "digest does not match")]
    assert await rate(programs, node) == b"rate: 1"


async def test_unstorable_policy_is_not_put_in_force(
    programs: Programs, upstream: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await programs.node(upstream.port)
    upstream.send(resources(published(stable=revision(1))), (1, 1))
    await upstream.acks.get()

    async def full(bucket: str, entries: object) -> None:
        raise StoreError("database or disk is full")

    monkeypatch.setattr(node.store, "commit", full)
    upstream.send(resources(published(stable=revision(2))), (1, 2))
    assert "disk is full" in (await upstream.acks.get()).refused
    assert await rate(programs, node) == b"rate: 1"
    assert node.policy.receiver.version == (1, 1)
    monkeypatch.undo()
    upstream.send(resources(published(stable=revision(2))), (1, 3))
    assert not (await upstream.acks.get()).refused
    await eventually(lambda: node.policy.receiver.version == (1, 3))
    assert await rate(programs, node) == b"rate: 2"


@pytest.mark.parametrize(("key", "value"), [(b"\0manifest", b"{"), (b"\0manifest", b"[1]"), (b"\xff", b"x")])
async def test_unreadable_stored_policy_is_fetched_again(
    programs: Programs, upstream: ScriptedControlPlane, key: bytes, value: bytes
) -> None:
    node = await programs.node(upstream.port)
    upstream.send(resources(published(stable=revision(4))), (1, 1))
    await upstream.acks.get()
    await node.store.commit("policy", {key: value})
    await programs.stop(node)
    again = await programs.node(upstream.port)
    assert (again.policy.receiver.version is None) is (key == b"\0manifest")
    assert await rate(programs, again) == b"rate: 4", "each resource is verified by itself"
    upstream.send(resources(published(stable=revision(5))), (1, 2))
    await upstream.acks.get()
    assert await rate(programs, again) == b"rate: 5"


def damage(programs: Programs, name: str) -> None:
    """Flip one bit of a stored resource."""
    file = sqlite3.connect(programs.folder / "node-local-one" / "node.sqlite3")
    key = name.encode()
    (value,) = file.execute("SELECT value FROM entries WHERE bucket = 'policy' AND key = ?", (key,)).fetchone()
    broken = value[:-20] + bytes([value[-20] ^ 1]) + value[-19:]
    file.execute("UPDATE entries SET value = ? WHERE bucket = 'policy' AND key = ?", (broken, key))
    file.commit()
    file.close()


HIGH_AND_LOW = (published("high", stable=revision(4), priority=9), published("low", stable=revision(50)))


async def one_that_has_high(programs: Programs, upstream: ScriptedControlPlane) -> TestAgent:
    """An agent of a node that has since stopped."""
    node = await programs.node(upstream.port)
    upstream.send(resources(*HIGH_AND_LOW), (1, 1))
    await upstream.acks.get()
    agent = await TestAgent.over("websocket", node.ports, "known")
    await agent.applied((await agent.hello()).remote_config.config_hash)
    await programs.stop(node)
    return agent


async def nobody_is_offered_anything(node: Node) -> None:
    for name in ("known", "new"):
        agent = await TestAgent.over("websocket", node.ports, name)
        assert not (await agent.hello()).HasField("remote_config"), "it keeps what it has"
        await agent.close()


@pytest.mark.parametrize("name", ["ConfigAssignment/high", f"ConfigTemplate/{TEMPLATE.key}"])
async def test_damaged_stored_resource_changes_no_config(
    programs: Programs, upstream: ScriptedControlPlane, name: str
) -> None:
    known = await one_that_has_high(programs, upstream)
    await asyncio.to_thread(damage, programs, name)
    again = await programs.node(upstream.port)
    degraded = again.condition().status["degraded"]
    assert any("damaged" in line for line in degraded), degraded
    await nobody_is_offered_anything(again)
    upstream.send(resources(*HIGH_AND_LOW), (1, 2))
    await upstream.acks.get()
    await eventually(lambda: not again.condition().status["degraded"])
    assert await rate(programs, again) == b"rate: 4"
    await known.close()


async def test_resource_lost_before_the_manifest_changes_no_config(
    programs: Programs, upstream: ScriptedControlPlane
) -> None:
    known = await one_that_has_high(programs, upstream)
    await upstream.stop()
    for name in ("ConfigAssignment/high", "\0manifest"):
        await asyncio.to_thread(damage, programs, name)
        again = await programs.node(1)
        assert any("damaged" in line for line in again.condition().status["degraded"])
        await nobody_is_offered_anything(again)
        await programs.stop(again)
    await known.close()


async def test_resource_lost_with_the_manifest_changes_no_config(
    programs: Programs, upstream: ScriptedControlPlane
) -> None:
    known = await one_that_has_high(programs, upstream)
    for name in ("ConfigAssignment/high", "\0manifest"):
        await asyncio.to_thread(damage, programs, name)
    await upstream.stop()
    for _ in range(2):  # nor after a second start, when nothing is damaged any more
        again = await programs.node(1)
        await nobody_is_offered_anything(again)
        await programs.stop(again)
    await known.close()


# ---- signed policy, from a real control plane


async def with_signed_policy(programs: Programs) -> tuple[ControlPlane, Path]:
    """A control plane, and the store of a node that has its policy and is stopped."""
    plane = await programs.control_plane()
    await apply(plane, BASIC, assignment("a", rate=4), assignment("b", slot="b", priority=1))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    await programs.stop(node)
    return plane, programs.folder / "node-local-one/node.sqlite3"


@contextlib.asynccontextmanager
async def opened(file: Path) -> AsyncIterator[LocalStore]:
    """The disk of a node, for somebody who writes its digests right."""
    store = LocalStore(file)
    yield store
    store.close()


async def test_signed_policy_survives_a_restart(programs: Programs) -> None:
    await with_signed_policy(programs)
    node = await programs.node(1)
    assert node.condition().ready
    assert await rate(programs, node) == b"rate: 4"
    assert node.policy.receiver.chain is not None


async def test_attack_policy_on_the_disk_is_changed(programs: Programs) -> None:
    plane, file = await with_signed_policy(programs)
    async with opened(file) as store:
        evil = dict(store.load("policy"))[b"ConfigAssignment/a"].replace(b'"rate":4', b'"rate":9')
        store.put("policy", b"ConfigAssignment/a", evil)
        store.put("policy", b"ConfigAssignment/evil", evil)
    node = await programs.node(1)
    assert node.policy.missing == {"ConfigAssignment/a"}
    assert [a.published.name for a in node.cohorts.snapshot.assignments] == ["b"], "what was signed serves on"
    await programs.stop(node)
    back = await programs.node(plane.ports["link"])
    await eventually(lambda: len(back.cohorts.snapshot.assignments) == 2)
    assert await rate(programs, back) == b"rate: 4"


@pytest.mark.parametrize("value", [b"[]", b"{", b'[{"payload": "", "key": "", "signature": ""}]'])
async def test_attack_signature_on_the_disk_is_changed(programs: Programs, value: bytes) -> None:
    plane, file = await with_signed_policy(programs)
    async with opened(file) as store:
        store.put("policy", b"\0signed", value)
    node = await programs.node(1)
    assert not node.cohorts.snapshot.assignments
    assert node.policy.is_incomplete, "its agents keep what they have"
    await programs.stop(node)
    back = await programs.node(plane.ports["link"])
    await eventually(lambda: len(back.cohorts.snapshot.assignments) == 2)


async def test_attack_another_control_plane_in_its_place(programs: Programs, tmp_path: Path) -> None:
    plane, _ = await with_signed_policy(programs)
    port = plane.ports["link"]
    await programs.stop(plane)
    impostor = await programs.control_plane(link=port, data_dir=str(tmp_path / "impostor"))
    node = await programs.node(port)
    await eventually(lambda: node.policy.receiver.ahead_of)
    assert (await ask(impostor, "POST", "/api/v1/epoch", {"reason": "to be newer"}))[0] == 200
    await eventually(lambda: node.policy.receiver.is_foreign)
    assert any("not the control plane that this node trusts" in line for line in node.condition().status["degraded"])
    assert await rate(programs, node) == b"rate: 4"
    age = node.freshness.age_s()
    assert age is None, "nothing that it says makes the policy fresh"


async def test_attack_unsigned_policy(programs: Programs, upstream: ScriptedControlPlane) -> None:
    await with_signed_policy(programs)
    node = await programs.node(upstream.port)
    upstream.send(resources(published(stable=revision(9))), (7, 7))
    assert "the manifest is not signed" in (await upstream.acks.get()).refused
    assert await rate(programs, node) == b"rate: 4"


async def test_damaged_key_sets_on_the_disk_are_seen_anew(programs: Programs) -> None:
    plane, file = await with_signed_policy(programs)
    async with opened(file) as store:
        store.put("policy", b"KeySet/trust", b"{}")
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.receiver.chain is not None)
    assert await rate(programs, node) == b"rate: 4"

"""Rotations over the admin API, with a node that joined: it follows without losing its link."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.auth.key_sets import read, sign
from relay.control.app import ControlPlane
from relay.node.app import Node
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.api.client import ask
from tests.control.join.joining import token, with_tls
from tests.control.keys.test_trust import root_of


async def pair(programs: Programs) -> tuple[ControlPlane, Node, Ed25519PrivateKey]:
    """A control plane, a node that joined it, and the root key, moved away."""
    plane = await with_tls(programs)
    node = await programs.node(join=await token(plane, name="one"), region="eu")
    await eventually(lambda: node.policy.accepted)
    file = programs.folder / "control-plane/keys/root.pem"
    root = root_of(file.parent)
    file.unlink()
    return plane, node, root


async def rotated(plane: ControlPlane, what: str, root: Ed25519PrivateKey) -> int:
    """Rotate with one root. Returns the version of the new key set."""
    status, begun = await ask(plane, "POST", f"/api/v1/trust/{what}", {})
    assert status == 200, begun
    signed = [sign(read(payload.encode()), root).plain() for payload in begun["to_sign"]]
    status, done = await ask(plane, "POST", f"/api/v1/trust/{what}", {"signed": signed})
    assert status == 200, done
    return int(done["version"])


async def test_manifest_key_is_rotated_under_a_running_link(programs: Programs) -> None:
    plane, node, root = await pair(programs)
    call, version = node.link._up_since, await rotated(plane, "manifest", root)
    await apply(plane, TEMPLATE, assignment("a"))
    await eventually(lambda: bool(node.cohorts.snapshot.assignments))
    chain = node.policy.receiver.chain
    assert chain is not None
    assert (chain.current.version, node.link._up_since) == (version, call), "the link stayed"
    assert not node.condition().status["degraded"]
    trusted = (programs.folder / "node-eu-one/identity/key_sets.json").read_text()
    assert trusted.count("payload") == 2, "the identity keeps it too"
    await eventually(lambda: plane.fleet.census.nodes["eu/one"].key_set == version)
    assert (await ask(plane, "GET", "/api/v1/trust"))[1]["nodes_without"] == []


async def test_ca_is_rotated_and_the_former_one_goes_by_itself(programs: Programs) -> None:
    plane, node, root = await pair(programs)
    (old,) = plane.trust.current.authorities
    await rotated(plane, "ca", root)
    # The node trusts the new one, gets a certificate of it, then the old one goes.
    await eventually(lambda: len(plane.trust.current.authorities) == 1 and plane.trust.current.version == 3, 20)
    assert old not in plane.trust.current.authorities
    await apply(plane, TEMPLATE, assignment("a"))
    await eventually(lambda: bool(node.cohorts.snapshot.assignments))
    again = await programs.node(join=await token(plane, name="two"), region="eu", name="two")
    await eventually(lambda: again.policy.accepted)


async def test_node_that_was_away_finds_back(programs: Programs) -> None:
    plane, node, root = await pair(programs)
    ports = plane.ports
    await programs.stop(node)
    await rotated(plane, "ca", root)
    await plane.trust.close(plane.trust.closing)  # as after 30 days
    await rotated(plane, "manifest", root)
    await programs.stop(plane)
    plane = await with_tls(programs, ports)
    back = await programs.node(join="", region="eu")
    assert back.renewal is not None
    await eventually(lambda: back.link.connected, 30)
    await apply(plane, TEMPLATE, assignment("a"))
    await eventually(lambda: bool(back.cohorts.snapshot.assignments))


async def test_bad_requests(programs: Programs) -> None:
    plane, _, _ = await pair(programs)
    key = "ab" * 32
    for path, body, status in (
        ("sun", {}, 422),
        ("root", {}, 422),
        ("root", {"root": "x"}, 422),
        ("manifest", {"root": key}, 422),
        ("downloads", {"signed": [{"payload": "", "key": "", "signature": ""}]}, 422),
        ("manifest", {"signed": [{"payload": "%", "key": "", "signature": ""}]}, 422),
        ("manifest", {"signed": []}, 422),
        ("manifest", {"signed": [{"payload": "", "key": "", "signature": ""}]}, 409),
    ):
        assert (await ask(plane, "POST", f"/api/v1/trust/{path}", body))[0] == status, (path, body)
    assert plane.trust.current.version == 1


async def test_secrets_are_rotated(programs: Programs) -> None:
    plane, _, _ = await pair(programs)
    master = (programs.folder / "control-plane/keys/master.key").read_bytes()
    for what in ("downloads", "master"):
        assert (await ask(plane, "POST", f"/api/v1/trust/{what}", {}))[0] == 200
    assert (programs.folder / "control-plane/keys/master.key").read_bytes() != master
    entries = (await ask(plane, "GET", "/api/v1/audit"))[1]
    assert {e["subject"] for e in entries} >= {"Keys/downloads", "Keys/master"}

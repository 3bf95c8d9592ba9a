"""The master key is lost: what stays, and how nodes find back."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.aio.clock import SystemClock
from relay.control.keys.rekey import rekey
from relay.errors import Conflict, StoreError
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.join.joining import token, with_tls
from tests.control.keys.test_trust import root_of


async def lost(programs: Programs) -> tuple[Path, Ed25519PrivateKey, dict[str, int]]:
    """A stopped control plane without its master key, its root key and its ports; a node that joined it is stopped too."""
    plane = await with_tls(programs)
    await apply(plane, TEMPLATE, assignment("a"))
    node = await programs.node(join=await token(plane, name="one"), region="eu")
    await eventually(lambda: node.policy.accepted)
    await programs.stop(node)
    await programs.stop(plane)
    folder = programs.folder / "control-plane"
    (folder / "keys/master.key").unlink()
    root = root_of(folder / "keys")
    (folder / "keys/root.pem").unlink()
    return folder, root, plane.ports


async def test_nodes_keep_their_identity_where_the_root_is_there(programs: Programs) -> None:
    folder, root, ports = await lost(programs)
    with pytest.raises(StoreError, match=r"master\.key is missing: restore it.*opamp-relay rekey"):
        await with_tls(programs, ports)
    assert await rekey(folder, folder / "keys", root, clock=SystemClock()) == 2
    plane = await with_tls(programs, ports)
    assert set(plane.ledger.state.catalog.assignments) == {"a"}
    node = await programs.node(join="", region="eu")
    await eventually(lambda: node.link.connected, 30)
    await apply(plane, assignment("a", rate=2))
    await eventually(lambda: plane.trust.current.version == 3, 20)
    assert len(plane.trust.current.authorities) == 1, "the lost CA is no longer trusted"


async def test_all_join_again_where_the_root_is_lost_too(programs: Programs) -> None:
    folder, _, ports = await lost(programs)
    (folder / "keys/master.key").write_bytes(b"1" * 32)
    (folder / "keys/root.pem").write_text("found again")
    with pytest.raises(Conflict, match="give it with --root-key"):
        await rekey(folder, folder / "keys", None, clock=SystemClock())
    (folder / "keys/root.pem").unlink()
    assert await rekey(folder, folder / "keys", None, clock=SystemClock()) == 0
    assert (folder / "keys/master.key.old").read_bytes() == b"1" * 32
    plane = await with_tls(programs, ports)
    assert plane.trust.current.version == 1
    assert set(plane.ledger.state.catalog.assignments) == {"a"}
    again = await programs.node(join=await token(plane, name="one"), region="eu")
    await eventually(lambda: again.link.connected and len(again.cohorts.snapshot.assignments) == 1)
    assert plane.ledger.state.joined_nodes.keys() == {"eu/one"}


async def test_refusals(programs: Programs) -> None:
    folder, _, _ = await lost(programs)
    with pytest.raises(Conflict, match="is not the root of this control plane"):
        await rekey(folder, folder / "keys", Ed25519PrivateKey.generate(), clock=SystemClock())
    for content in (b"1", b"2"):
        (folder / "keys/master.key").write_bytes(content * 32)
        assert await rekey(folder, folder / "keys", None, clock=SystemClock()) == 0
    names = {file.name: file.read_bytes()[:1] for file in (folder / "keys").glob("master.key.old*")}
    assert names == {"master.key.old": b"1", "master.key.old2": b"2"}, "none is overwritten"

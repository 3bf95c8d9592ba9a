from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.cli import trust as module
from relay.control.trust.rotation import Rotation
from relay.node.identity import read_root as read_public
from tests.cli.guarded import Guarded
from tests.cli.run import run
from tests.conftest import Programs, eventually
from tests.control.actors import ANN
from tests.control.api.people import TOKENS
from tests.control.join.joining import token, with_tls


async def desk_of(programs: Programs) -> tuple[Guarded, Path]:
    """A desk, and the file of the root key, moved away from the control plane."""
    plane = await with_tls(programs, **TOKENS)
    node = await programs.node(join=await token(plane, name="one"), region="eu")
    await eventually(lambda: node.policy.accepted)
    root = (programs.folder / "control-plane/keys/root.pem").rename(programs.folder / "root.pem")
    return Guarded(plane, programs.folder), root


async def test_everything_is_rotated(programs: Programs) -> None:
    desk, root = await desk_of(programs)
    for number, what in enumerate(("manifest", "root"), 2):
        done = await desk.ctl("trust", "rotate", what, "--root-key", str(root))
        assert done.status == 0, done.err
        assert f"key set {number} is in force" in done.err
        assert "all connected nodes have it" in done.err
        if what == "root":
            assert done.out.startswith("-----BEGIN PRIVATE KEY-----\n")
            assert (await desk.ctl("trust", "rotate", "manifest", "--root-key", str(root))).status == 2, "the old one"
            root.write_text(done.out)
        else:
            assert done.out == ""
    assert (await desk.ctl("trust", "rotate", "ca", "--root-key", str(root))).status == 0
    for what in ("downloads", "master"):
        assert (await desk.ctl("trust", "rotate", what)).status == 0
    shown = await desk.ctl("trust", "show")
    assert "policy is signed by" in shown.out
    plain = json.loads((await desk.ctl("trust", "show", "-o", "json")).out)
    assert plain["version"] >= 4
    (programs.folder / "public.pem").write_text((await desk.ctl("trust", "show", "--pem")).out)
    assert read_public(programs.folder / "public.pem") == plain["roots"][0]["id"]


async def test_usage_errors(programs: Programs) -> None:
    desk, root = await desk_of(programs)
    (programs.folder / "other").write_text("no key")
    for wrong in (
        ("sun",),
        ("manifest",),
        ("downloads", "--root-key", str(root)),
        ("ca", "--root-key", "/nowhere"),
        ("ca", "--root-key", str(programs.folder / "other")),
    ):
        assert (await desk.ctl("trust", "rotate", *wrong)).status == 2, wrong
    viewer = (await desk.ctl("token", "create", "--name", "v", "--role", "viewer")).out.strip()
    assert (await desk.ctl("trust", "rotate", "manifest", "--root-key", str(root), token=viewer)).status == 1


async def test_attack_control_plane_that_wants_a_root_of_its_own(programs: Programs) -> None:
    desk, _ = await desk_of(programs)
    trust = {"version": 1, "trust_domain": desk.plane.trust.current.trust_domain}
    payload = (await desk.plane.trust.propose(Rotation.MANIFEST, actor=ANN)).payloads[0].decode()
    root = desk.plane.trust.root
    for payloads, own in (([payload], "f" * 64), (["{}"], root), ([payload, payload], root), ([payload] * 3, root)):
        with pytest.raises(SystemExit):
            module._check_payloads(payloads, trust, own)
    module._check_payloads([payload], trust, root)


async def test_rekey(programs: Programs) -> None:
    _, root = await desk_of(programs)
    folder = str(programs.folder / "control-plane")
    assert (await run("opamp-relay", "rekey", "--data", folder)).status == 2
    assert (await run("opamp-relay", "rekey", "--data", folder, "--root-key", str(root))).status == 1, "it runs"
    await programs.stop_all()
    done = await run("opamp-relay", "rekey", "--data", folder, "--root-key", str(root))
    assert (done.status, done.out.startswith("key set 2 is signed")) == (0, True), done.err
    done = await run("opamp-relay", "rekey", "--data", folder, "--new-root")
    assert (done.status, "all nodes must join again" in done.out) == (0, True), done.err

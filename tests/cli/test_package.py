from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.cli.run import Done
from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, Programs, assignment, eventually
from tests.packages import PackageAgent, digest, package_assignment

__all__ = ["desk"]
CONTENT = os.urandom(9 << 20)


async def push(desk: Desk, content: bytes, *more: str, version: str = "1") -> Done:
    path = desk.folder / "package.bin"
    path.write_bytes(content)
    return await desk.ctl("package", "push", str(path), "--name", "otelcol", "--version", version, *more)


async def test_package_reaches_agents(desk: Desk) -> None:
    done = await push(desk, CONTENT, "--attribute", "os.type=linux")
    assert done.out == f"Package/otelcol@1 created: {digest(CONTENT)[:12]}, {len(CONTENT)} bytes\n"
    assert "unchanged" in (await push(desk, CONTENT, "--attribute", "os.type=linux")).out
    refused = await push(desk, b"other", "--attribute", "os.type=linux")
    assert (refused.status, "different content for" in refused.err) == (1, True)
    assert "otelcol  1        top-level  1      9.0 MiB" in (await desk.ctl("package", "list")).out
    shown = (await desk.ctl("package", "show", "otelcol@1")).out
    assert f"os.type=linux  {digest(CONTENT)}" in shown
    assert (await desk.ctl("apply", "-f", desk.file("p.yaml", package_assignment()))).status == 0
    agent = await PackageAgent.join(desk.node, os_type="linux")
    await agent.install(await agent.wait())
    assert agent.content["otelcol"] == CONTENT

    async def status() -> str:
        out = (await desk.ctl("get", "package-status")).out
        return out if "otelcol  1        local   1" in out else ""

    assert await eventually(status)
    explained = (await desk.ctl("explain", "agent", agent.agent.name)).out
    assert "packages: agents, stable revision" in explained
    assert f"otelcol 1 (sha256 {digest(CONTENT)[:12]})" in explained
    assert "otelcol@1" in (await desk.ctl("get", "packageassignments")).out
    assert (await desk.ctl("package", "delete", "otelcol@1")).status == 1
    assert (await desk.ctl("package", "yank", "otelcol@1", "--reason", "CVE")).out == "Package/otelcol@1 yanked\n"
    assert "yanked: CVE" in (await desk.ctl("package", "show", "otelcol@1")).out
    await agent.close()


async def test_diff_and_prefetch(desk: Desk) -> None:
    await push(desk, b"one")
    await push(desk, b"two", version="2")
    await desk.ctl("apply", "-f", desk.file("p.yaml", package_assignment()))
    agent = await PackageAgent.join(desk.node)
    await agent.install(await agent.wait())
    await eventually(lambda: desk.plane.fleet.census.agents)
    changed = await desk.ctl("diff", "-f", desk.file("p2.yaml", package_assignment("2")))
    assert changed.status == 1
    assert f"-otelcol: 1 (sha256 {digest(b'one')[:12]})\n+otelcol: 2 (sha256" in changed.out
    assert "1 agents would change" in changed.out
    told = await desk.ctl("prefetch", "otelcol@2", "--region", "local")
    assert told.out == "Package/otelcol@2: local will fetch it\n"
    await eventually(lambda: digest(b"two") in desk.node.packages.available_files)
    await agent.close()


async def test_push_with_a_signature(desk: Desk) -> None:
    key = Ed25519PrivateKey.generate()
    private = desk.folder / "release.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    refused = await push(desk, b"signed", "--sign", str(private))
    assert (refused.status, "no PackageSigningKey has that name" in refused.err) == (1, True)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    document = {
        "apiVersion": "opamp.io/v1",
        "kind": "PackageSigningKey",
        "metadata": {"name": "release"},
        "spec": {"public_key": pem},
    }
    await desk.ctl("apply", "-f", desk.file("key.yaml", json.dumps(document)))
    assert "release" in (await desk.ctl("get", "signingkeys")).out
    assert (await push(desk, b"signed", "--sign", str(private), "--expires", "90d")).status == 0
    assert "release" in (await desk.ctl("package", "show", "otelcol@1")).out
    (desk.folder / "release.sig").write_bytes(bytes(64))
    wrong = await push(desk, b"x", "--signature", str(desk.folder / "release.sig"), version="2")
    assert "the signature of otelcol@2 is wrong" in wrong.err


@pytest.mark.parametrize(
    "more",
    [("--attribute", "x"), ("--expires", "soon", "--sign", "{key}"), ("--sign", "{key}", "--signature", "{key}")],
)
async def test_usage_errors(desk: Desk, more: tuple[str, ...]) -> None:
    (desk.folder / "key").write_text("no key")
    named = [argument.format(key=desk.folder / "key") for argument in more]
    assert (await push(desk, b"x", *named)).status == 2
    assert (await desk.ctl("package", "show", "otelcol")).status == 2


async def test_bundle_moves_everything_to_another_site(desk: Desk, programs: Programs, tmp_path: Path) -> None:
    await push(desk, CONTENT)
    await push(desk, b"two", version="2")
    documents = TEMPLATE + assignment("a") + package_assignment()
    await desk.ctl("apply", "-f", desk.file("all.yaml", documents))
    bundle, packages = tmp_path / "site.tar", tmp_path / "packages.tar"
    assert (await desk.ctl("bundle", "export", str(bundle))).out == f"{bundle}: 2 versions, 2 files, 3 documents\n"
    assert "1 versions" in (await desk.ctl("package", "export", str(packages), "otelcol@2")).out
    await programs.stop(desk.plane)
    programs.folder = tmp_path / "elsewhere"
    desk.plane = await programs.control_plane()
    assert (await desk.ctl("package", "import", str(packages))).out.startswith("Package/otelcol@2 created")
    done = await desk.ctl("bundle", "import", str(bundle))
    assert done.status == 0, done.err
    assert "Package/otelcol@2 unchanged" in done.out
    assert "PackageAssignment/agents created" in done.out
    assert await desk.plane.packages.blobs.size(digest(CONTENT)) == len(CONTENT)
    await desk.ctl("package", "yank", "otelcol@1")
    refused = await desk.ctl("package", "export", str(tmp_path / "x.tar"), "otelcol@1")
    assert (refused.status, "otelcol@1 was yanked" in refused.err) == (1, True)
    assert not (tmp_path / "x.tar").exists()
    rest = await desk.ctl("bundle", "export", str(tmp_path / "rest.tar"))
    assert (rest.status, "left out: PackageAssignment/agents: names otelcol@1" in rest.err) == (0, True), rest
    again = await desk.ctl("bundle", "import", str(tmp_path / "rest.tar"))
    assert (again.status, "otelcol@1" in again.out) == (0, False), again
    content = bytearray(bundle.read_bytes())
    content[-5_000_000] ^= 1
    bundle.write_bytes(content)
    broken = await desk.ctl("bundle", "import", str(bundle))
    assert (broken.status, "is corrupt" in broken.err) == (1, True)

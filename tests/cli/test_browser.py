"""`opampctl login` at a real OpenID provider, with a person who fills in its forms."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import BIN, run
from tests.conftest import Programs
from tests.control.api.test_logins import oidc
from tests.openid.provider import OpenIdProvider, browse, openid_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with openid_provider() as started:
        yield started


async def log_in(server: str, folder: Path, *args: str, deny: bool = False) -> tuple[int | None, str]:
    """Run `opampctl login` and do what it says. Returns (exit status, what it printed)."""
    environment = {**os.environ, "OPAMPCTL_SERVER": server, "OPAMPCTL_CONFIG_DIR": str(folder), "BROWSER": "true"}
    process = await asyncio.create_subprocess_exec(
        str(BIN / "opampctl"), "login", *args, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    said = (await process.stderr.readline()).decode()
    if "open " in said:
        address, code = said.split("open ")[1].split(" and enter ")
        await browse(f"{address}?user_code={code.strip()}", "alice", deny=deny)
    elif "log in at" in said:
        await browse((await process.stderr.readline()).decode().strip(), "alice", deny=deny)
    async with asyncio.timeout(30):
        rest = (await process.stderr.read()).decode()
    return await process.wait(), said + rest


async def test_person_logs_in_and_out(programs: Programs, provider: OpenIdProvider) -> None:
    plane = await programs.control_plane(admin=oidc(programs.folder, provider))
    server, folder = f"http://127.0.0.1:{plane.ports['api']}", programs.folder / "opampctl"
    settings: dict[str, Any] = {"OPAMPCTL_SERVER": server, "OPAMPCTL_CONFIG_DIR": str(folder)}
    admin = (programs.folder / "control-plane/admin-token").read_text().strip()
    binding = (
        "{apiVersion: opamp.io/v1, kind: RoleBinding, metadata: {name: a},"
        " spec: {role: viewer, subjects: [{user: alice}]}}"
    )
    applied = await run("opampctl", "apply", "-f", "-", stdin=binding, OPAMPCTL_TOKEN=admin, **settings)
    assert applied.status == 0, applied.err
    status, said = await log_in(server, folder)
    assert status == 0, said
    assert "as alice (viewer)" in said
    assert stat.S_IMODE((folder / "tokens.json").stat().st_mode) == 0o600
    assert "alice: viewer" in (await run("opampctl", "whoami", **settings)).out
    listed = await run("opampctl", "get", "rolebindings", **settings)
    assert (listed.status, "viewer" in listed.out) == (0, True), listed.err
    session = (folder / "tokens.json").read_text()
    assert (await run("opampctl", "logout", **settings)).status == 0
    assert "opamps_" in session
    assert "opamps_" not in (folder / "tokens.json").read_text()
    assert plane.ledger.state.sessions == {}
    assert (await run("opampctl", "whoami", **settings)).status == 1


async def test_person_says_no(programs: Programs, provider: OpenIdProvider) -> None:
    plane = await programs.control_plane(admin=oidc(programs.folder, provider))
    status, said = await log_in(f"http://127.0.0.1:{plane.ports['api']}", programs.folder / "opampctl", deny=True)
    assert (status, "not logged in: the person said no" in said) == (1, True), said


async def test_person_logs_in_on_another_device(programs: Programs, provider: OpenIdProvider) -> None:
    plane = await programs.control_plane(admin=oidc(programs.folder, provider, device_flow=True))
    server, folder = f"http://127.0.0.1:{plane.ports['api']}", programs.folder / "opampctl"
    status, said = await log_in(server, folder, "--device")
    assert (status, "no RoleBinding names you: ask an admin" in said) == (0, True), said
    assert len(plane.ledger.state.sessions) == 1


async def test_usage_errors(programs: Programs) -> None:
    plane = await programs.control_plane(admin={"auth": {"type": "token"}})
    settings: dict[str, Any] = {
        "OPAMPCTL_SERVER": f"http://127.0.0.1:{plane.ports['api']}",
        "OPAMPCTL_CONFIG_DIR": str(programs.folder),
    }
    assert (await run("opampctl", "login", "--device", **settings)).status == 2
    assert (await run("opampctl", "login", "--device", "--token-file", "x", **settings)).status == 2
    assert sys.version_info >= (3, 11)

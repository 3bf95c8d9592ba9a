from __future__ import annotations

import json

from tests.cli.guarded import guarded
from tests.cli.run import run
from tests.conftest import Programs, eventually


async def test_login_is_remembered_until_logout(programs: Programs) -> None:
    desk = await guarded(programs)
    done = await desk.ctl("get", "agents", token="")
    assert done.status == 1
    assert "a valid token is required" in done.err
    assert "opampctl login" in done.err
    done = await desk.ctl("login", token="", stdin=desk.admin)
    assert (done.status, done.out) == (0, "")
    assert "as admin (admin)" in done.err
    assert (await desk.ctl("get", "agents", token="")).status == 0
    assert (await desk.ctl("logout", token="")).status == 0
    assert (await desk.ctl("get", "agents", token="")).status == 1


async def test_wrong_tokens_are_not_remembered(programs: Programs) -> None:
    desk = await guarded(programs)
    done = await desk.ctl("login", token="", stdin="opampt_wrong")
    assert (done.status, "the token that was sent is not accepted" in done.err) == (1, True)
    assert (await desk.ctl("login", token="", stdin="")).status == 2
    assert (await desk.ctl("get", "agents", token="")).status == 1


async def test_whoami_and_can_i(programs: Programs) -> None:
    desk = await guarded(programs)
    viewer = (await desk.ctl("token", "create", "--name", "x", "--role", "viewer", "--scope", "team=a")).out.strip()
    assert (await desk.ctl("whoami", token=viewer)).out.startswith("admin: viewer for team=a\nby token-")
    assert json.loads((await desk.ctl("whoami", "-o", "json")).out)["role"] == "admin"
    done = await desk.ctl("can-i", "write", token=viewer)
    assert (done.status, done.out) == (1, "no: the role viewer may not do this: it needs the verb write\n")
    assert (await desk.ctl("can-i", "read", token=viewer)).out == "yes\n"
    assert (await desk.ctl("can-i", "write", "assignment/a")).out == "yes\n"
    for wrong in (("fly",), ("write", "assignment"), ("write", "planet/a")):
        assert (await desk.ctl("can-i", *wrong)).status == 2, wrong


async def test_who_has_a_token_cannot_claim_another_name(programs: Programs) -> None:
    desk = await guarded(programs)
    done = await desk.ctl("apply", "-f", "-", "--as", "root")
    assert (done.status, done.err) == (2, "--as: the token says who you are\n")


async def test_token_never_goes_in_the_clear_to_another_machine() -> None:
    done = await run("opampctl", "get", "agents", "--server", "http://192.0.2.1:4340", OPAMPCTL_TOKEN="secret")
    assert done.status == 3
    assert "a token is never sent over plain HTTP to another machine" in done.err
    done = await run("opampctl", "get", "agents", "--server", "https://127.0.0.1:1", OPAMPCTL_CA_FILE="/nowhere")
    assert done.status == 3
    assert "OPAMPCTL_CA_FILE" in done.err
    assert (await run("opampctl", "--token-file", "/nowhere", "get", "agents")).status == 2


async def test_admin_token_on_the_machine_of_the_control_plane(programs: Programs) -> None:
    desk = await guarded(programs)
    folder = programs.folder / "control-plane"
    done = await run("opamp-relay", "admin-token", "--data", str(folder))
    assert (done.status, done.out.startswith("opampt_")) == (0, True)

    async def is_accepted() -> bool:
        return (await desk.ctl("whoami", token=done.out.strip())).status == 0

    await eventually(is_accepted)
    done = await run("opamp-relay", "admin-token", "--data", str(programs.folder / "nowhere"))
    assert (done.status, done.out) == (2, "")
    assert "no control plane has its data here" in done.err

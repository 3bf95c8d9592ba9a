from __future__ import annotations

import json

from tests.cli.guarded import Guarded, guarded
from tests.conftest import Programs, eventually
from tests.control.api.people import TOKENS
from tests.control.join.joining import with_tls
from tests.node.test_authentication import joined


async def test_secrets_stand_alone_on_standard_output(programs: Programs) -> None:
    desk = await guarded(programs)
    done = await desk.ctl("key", "create", "--agent", "agent-001", "-l", "team=a", "--region", "eu")
    assert done.out.startswith("opamp_")
    assert done.out.count("\n") == 1
    assert "it is not shown again" in done.err
    made = json.loads((await desk.ctl("key", "create", "--fleet", "web", "--expires", "1h", "-o", "json")).out)
    assert made["key"].startswith("opamp_")
    listed = (await desk.ctl("key", "list")).out
    assert "agent-001" in listed
    assert "team=a" in listed
    assert done.out.strip() not in listed
    rotated = json.loads((await desk.ctl("key", "rotate", made["id"], "--overlap", "0s", "-o", "json")).out)
    assert rotated["subject"] == "web"
    keys = {key["id"]: key for key in json.loads((await desk.ctl("key", "list", "-o", "json")).out)}
    assert keys[made["id"]]["replaced_by"] == rotated["id"]
    assert (await desk.ctl("key", "delete", made["id"])).out == f"{made['id']} deleted\n"


async def test_usage_errors(programs: Programs) -> None:
    desk = await guarded(programs)
    for wrong in (
        ("key", "create"),
        ("key", "create", "--agent", "a", "--fleet", "b"),
        ("key", "create", "--agent", "a", "--expires", "soon"),
        ("key", "create", "--agent", "a", "-l", "team"),
        ("token", "create", "--name", "a", "--role", "king"),
        ("token", "create", "--name", "a"),
        ("revoke", "planet", "a", "--reason", "x"),
        ("revoke", "key", "a"),
    ):
        assert (await desk.ctl(*wrong)).status == 2, wrong
    done = await desk.ctl("key", "create", "--agent", "a", "-l", "region=eu")
    assert (done.status, "region is set by an agent's node" in done.err) == (1, True)


async def test_tokens(programs: Programs) -> None:
    desk = await guarded(programs)
    token = (await desk.ctl("token", "create", "--name", "ci", "--role", "author", "--scope", "team=a")).out.strip()
    assert token.startswith("opampt_")
    assert (await desk.ctl("get", "agents", token=token)).status == 0
    assert (await desk.ctl("key", "create", "--agent", "a", token=token)).status == 1
    tokens = json.loads((await desk.ctl("token", "list", "-o", "json")).out)
    (made,) = [t for t in tokens if t["name"] == "ci"]
    assert "author" in (await desk.ctl("token", "list")).out
    assert (await desk.ctl("revoke", "token", made["id"], "--reason", "left")).status == 0
    assert (await desk.ctl("get", "agents", token=token)).status == 1
    assert (await desk.ctl("token", "delete", made["id"])).status == 1


async def test_revocation_is_followed_to_every_region(programs: Programs) -> None:
    desk = await guarded(programs)
    node = await programs.node(desk.plane.ports["link"], region="eu", auth={"type": "api_key"})
    secret = (await desk.ctl("key", "create", "--fleet", "web")).out.strip()
    await eventually(lambda: node.policy.access.shards)
    agent, _ = await joined(node, "websocket", "one", secret)
    done = await desk.ctl("revoke", "subject", "web", "--reason", "stolen")
    assert done.status == 0
    assert done.out.startswith("eu: in force after ")
    assert await agent.pipe.socket.close_code() == 1008  # type: ignore[attr-defined]
    listed = json.loads((await desk.ctl("get", "revocations", "-o", "json")).out)
    assert [(r["kind"], r["value"], r["reason"], r["by"]) for r in listed] == [("subject", "web", "stolen", "admin")]
    assert "stolen" in (await desk.ctl("get", "revocations")).out
    assert (await desk.ctl("unrevoke", listed[0]["id"])).status == 0
    assert (await desk.ctl("unrevoke", listed[0]["id"])).status == 1
    state = desk.plane.fleet.census.nodes["eu/one"]
    await programs.stop(node)
    await eventually(lambda: not state.connected)
    state.departed = False  # as if it had been cut off
    done = await desk.ctl("revoke", "subject", "web", "--reason", "again")
    assert done.status == 1
    assert done.out.startswith("eu: not heard since 20")
    assert done.out.endswith("; refuses when it is back\n")


async def test_nodes_join_and_are_taken_away(programs: Programs) -> None:
    plane = await with_tls(programs, **TOKENS)
    desk = Guarded(plane, programs.folder)
    done = await desk.ctl("node", "token", "create", "--region", "eu")
    assert done.out.startswith("opampj_")
    assert done.out.count("\n") == 1
    node = await programs.node(join=done.out.strip(), region="eu")
    await eventually(lambda: node.link.connected)
    assert "verified" in (await desk.ctl("get", "nodes")).out
    listed = json.loads((await desk.ctl("node", "token", "list", "-o", "json")).out)
    assert [(t["region"], t["used_by"]) for t in listed] == [("eu", ["one"])]
    assert "one" in (await desk.ctl("node", "token", "list")).out
    shown = (await desk.ctl("trust", "show")).out
    assert shown.startswith("key set 1 of opamp-")
    assert json.loads((await desk.ctl("trust", "show", "-o", "json")).out)["version"] == 1
    assert (await desk.ctl("revoke", "node", "one", "--reason", "x")).status == 2
    assert (await desk.ctl("revoke", "node", "eu/one", "--reason", "x")).status == 0
    assert "revoked" in (await desk.ctl("get", "nodes")).out
    assert (await desk.ctl("node", "token", "delete", listed[0]["id"])).status == 0
    assert (await desk.ctl("node", "token", "create", "--region", "eu", "--ttl", "soon")).status == 2

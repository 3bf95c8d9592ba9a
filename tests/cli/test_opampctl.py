import json
from pathlib import Path

import pytest

from relay.control.app import ControlPlane
from relay.node.app import Node
from tests.cli.run import Done, run
from tests.conftest import TEMPLATE, Programs, assignment, eventually
from tests.wire import TestAgent


class Desk:
    def __init__(self, plane: ControlPlane, node: Node, folder: Path) -> None:
        self.plane = plane
        self.node = node
        self.folder = folder

    async def ctl(self, *args: str, stdin: str = "") -> Done:
        server = f"http://127.0.0.1:{self.plane.ports['api']}"
        return await run("opampctl", *args, stdin=stdin, OPAMPCTL_SERVER=server)

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture
async def desk(programs: Programs, tmp_path: Path) -> Desk:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    folder = tmp_path / "documents"
    folder.mkdir()
    return Desk(plane, node, folder)


async def test_apply_diff_get_delete(desk: Desk) -> None:
    desk.file("1.yaml", TEMPLATE)
    desk.file("2.yaml", assignment("a"))
    assert (await desk.ctl("diff", "-f", str(desk.folder))).status == 1
    done = await desk.ctl("apply", "-f", str(desk.folder))
    assert (done.status, done.out) == (0, "ConfigTemplate/basic@v1 created\nConfigAssignment/a created\n")
    assert (await desk.ctl("diff", "-f", str(desk.folder))).status == 0
    done = await desk.ctl("diff", "-f", "-", stdin=assignment("a", rate=2))
    assert done.status == 1
    assert "-    rate: 1\n+    rate: 2\n" in done.out
    done = await desk.ctl("apply", "--dry-run", "-f", "-", stdin=assignment("a", rate=2))
    assert done.out == "ConfigAssignment/a configured (dry run)\n"
    assert "every agent" in (await desk.ctl("get", "assignments")).out
    assert "basic  v1" in (await desk.ctl("get", "templates")).out
    listed = json.loads((await desk.ctl("get", "templates", "-o", "json")).out)
    assert listed[0]["metadata"] == {"name": "basic", "version": "v1"}
    assert (await desk.ctl("delete", "template", "basic@v1")).status == 1
    done = await desk.ctl("delete", "-f", str(desk.folder))
    assert done.out == "ConfigAssignment/a deleted\nConfigTemplate/basic@v1 deleted\n"
    assert (await desk.ctl("delete", "-f", str(desk.folder))).out.count("not found") == 2


async def test_refusals_name_file_line_and_path(desk: Desk) -> None:
    name = desk.file("bad.yaml", TEMPLATE + assignment("a", rate=1000))
    done = await desk.ctl("apply", "-f", name)
    assert (done.status, done.err) == (1, f"{name}:18: spec.values.rate: 1000 is greater than the maximum, 100\n")


@pytest.mark.parametrize(
    "args",
    [
        ("apply",),
        ("apply", "-f", "/nonexistent.yaml"),
        ("get", "nonsense"),
        ("get", "agents", "-o", "xml"),
        ("get", "agents", "-l", "tier"),
        ("get", "nodes", "-l", "tier=prod"),
        ("delete",),
        ("describe", "node", "x"),
        ("delete", "node", "x"),
        ("delete", "agent", "x"),
    ],
)
async def test_usage_errors_exit_2(desk: Desk, args: tuple[str, ...]) -> None:
    done = await desk.ctl(*args)
    assert done.status == 2, done
    assert done.err


async def test_folder_without_documents_is_a_usage_error(desk: Desk) -> None:
    assert (await desk.ctl("apply", "-f", str(desk.folder))).status == 2


async def test_agents_nodes_and_regions(desk: Desk) -> None:
    agents = [await TestAgent.over("websocket", desk.node.ports, f"agent-{i}") for i in range(2)]
    for i, agent in enumerate(agents):
        await agent.hello(tier="x" if i else "y")
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 2)
    table = (await desk.ctl("get", "agents")).out.splitlines()
    assert table[0].split() == [
        "AGENT",
        "REGION",
        "NODE",
        "CONNECTED",
        "TRANSPORT",
        "HEALTHY",
        "CONFIG_HASH",
        "STATUS",
        "ASSIGNMENTS",
    ]
    assert table[1].split()[:6] == ["agent-0", "local", "one", "yes", "websocket", "yes"]
    chosen = json.loads((await desk.ctl("get", "agents", "-l", "tier=x", "-o", "json")).out)
    (view,) = chosen
    assert set(view) >= {
        "instance_uid", "agent_id", "region", "node", "connected", "transport", "healthy", "labels", "attributes",
        "capabilities", "config", "first_seen", "last_change",
    }  # fmt: skip
    assert set(view["config"]) == {"offered_hash", "reported_hash", "status", "error_message", "assignments"}
    assert "agent_id: agent-1" in (await desk.ctl("describe", "agent", "agent-1")).out
    assert "agent_id: agent-1" in (await desk.ctl("describe", "agent", view["instance_uid"])).out
    assert json.loads((await desk.ctl("get", "agents", "agent-0", "-o", "json")).out)["agent_id"] == "agent-0"
    (node,) = json.loads((await desk.ctl("get", "nodes", "-o", "json")).out)
    assert set(node) >= {"name", "region", "connected", "agents", "manifest", "policy_age_s", "rejected"}
    assert "local" in (await desk.ctl("get", "regions")).out
    assert (await desk.ctl("get", "nodes", "none")).status == 1
    assert (await desk.ctl("get", "agents", "none")).status == 1
    assert (await desk.ctl("get", "nodes", "-o", "yaml")).out.startswith("- name: one")
    for agent in agents:
        await agent.close()
    await eventually(lambda: not any(a.connected for a in desk.plane.fleet.census.agents.values()))
    away = (await desk.ctl("describe", "agent", "agent-1")).out
    assert ("health_when_last_heard:" in away, "\nhealth:" in away) == (True, False)


async def test_agent_config(desk: Desk) -> None:
    from relay.pb.opamp.v1 import opamp_pb2 as pb

    agent = await TestAgent.over("websocket", desk.node.ports, "a")
    await agent.hello()
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"receivers: {}"
    await agent.report(effective_config=effective)

    async def shown() -> bool:
        return (await desk.ctl("agent", "config", "a")).out == "receivers: {}\n"

    await eventually(shown)
    assert json.loads((await desk.ctl("agent", "config", "a", "-o", "json")).out)[""]["body"] == "receivers: {}"
    assert (await desk.ctl("agent", "config", "nobody")).status == 1
    await agent.close()

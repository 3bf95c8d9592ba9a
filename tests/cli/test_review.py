from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.cli.run import run
from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment, eventually
from tests.wire import TestAgent

__all__ = ["desk"]
BROKEN = """receivers: {otlp: {}}
exporters:
  debug: {}
  file: {}
service:
  pipelines:
    logs: {receivers: [kafka], exporters: [debug]}
"""


async def test_diff_shows_documents_and_agents(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + assignment("a")))
    changed = desk.file("b.yaml", assignment("a", rate=2))
    found = await desk.ctl("diff", "-f", changed)
    assert found.status == 1
    assert "ConfigAssignment/a (given)" in found.out
    assert "0 agents would change" in found.out
    as_json = await desk.ctl("diff", "-f", changed, "-o", "json")
    assert set(json.loads(as_json.out)) >= {
        "agents_changed", "by_region", "by_assignment", "diffs", "conflicts", "orphans", "missing_components"
    }  # fmt: skip
    assert (await desk.ctl("diff", "-f", desk.file("c.yaml", assignment("a")))).status == 0


async def test_validate_names_file_line_and_path(desk: Desk) -> None:
    name = desk.file("broken.yaml", BROKEN)
    found = await desk.ctl("validate", name)
    assert found.status == 1
    assert found.err.splitlines() == [
        f"{name}:7: service.pipelines.logs.receivers.0: kafka is not defined in receivers or connectors",
        f"warning: {name}:1: receivers.otlp: is defined but not used",
        f"warning: {name}:4: exporters.file: is defined but not used",
    ]
    template = (
        "apiVersion: opamp.io/v1\nkind: ConfigTemplate\nmetadata: {name: t, version: v1}\nspec:\n  config:\n"
        + "".join(f"    {line}\n" for line in BROKEN.splitlines())
    )
    in_template = await desk.ctl("validate", desk.file("t.yaml", template))
    assert ":12: spec.config.service.pipelines.logs.receivers.0: kafka" in in_template.err
    assert (await desk.ctl("validate", desk.file("list.yaml", "[1]"))).status == 1
    assert (await desk.ctl("validate", desk.file("bad.yaml", "a: ["))).status == 1
    assert (await desk.ctl("validate", desk.file("kind.yaml", "kind: ConfigTemplate"))).status == 1
    assert (await desk.ctl("validate", "/nonexistent")).status == 2
    assert (await desk.ctl("validate", str(Path("config/policy")))).status == 0
    warned = await desk.ctl("apply", "-f", desk.file("t2.yaml", template))
    assert (warned.status, "warning: " in warned.err) == (0, True)


async def test_import_adopts_the_config_of_an_agent(desk: Desk) -> None:
    agent = await TestAgent.over("websocket", desk.node.ports, "x")
    await agent.hello()
    config = pb.EffectiveConfig()
    config.config_map.config_map[""].body = b"receivers: {otlp: {}}\n"
    await agent.report(effective_config=config)
    await eventually(lambda: len(desk.plane.fleet.bodies))
    printed = await desk.ctl("import", "agent", "x", "--name", "adopted")
    assert "observe_only: true" in printed.out
    done = await desk.ctl("import", "agent", "x", "--name", "adopted", "--apply")
    assert done.out == "ConfigTemplate/adopted@v1 created\nConfigAssignment/adopted created\n"
    taken = await desk.ctl("import", "agent", "x", "--name", "adopted", "--apply")
    assert (taken.status, "already" in taken.err) == (1, True)
    drift = await desk.ctl("get", "drift", "-o", "json")
    assert json.loads(drift.out)[0]["state"] == "same"
    assert "adopted" in (await desk.ctl("get", "drift")).out
    for args in (("import", "node", "x", "--name", "y"), ("import", "agent", "x", "--name", "y", "--slot", "z")):
        assert (await desk.ctl(*args)).status == 2
    await agent.close()


@pytest.mark.parametrize("to", ["", "a-1"])
async def test_undo_and_config_by_hash(desk: Desk, to: str) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + assignment("a", rate=1)))
    await desk.ctl("apply", "-f", desk.file("b.yaml", assignment("a", rate=2)))
    undone = await desk.ctl("rollout", "undo", "a", *(("--to", to) if to else ()))
    assert undone.out == "ConfigAssignment/a configured: rollout a-3 to basic@v1\n"
    await eventually(lambda: len(desk.plane.archive._known) == 2)
    first = next(iter(desk.plane.archive._known)).hex()
    assert "rate: " in (await desk.ctl("get", "config", first[:12])).out
    assert (await desk.ctl("get", "config", "0" * 12)).status == 1
    assert (await desk.ctl("get", "config")).status == 2
    explained = await desk.ctl("explain", "agent", "nobody")
    assert explained.status == 1


async def test_validate_checks_references_in_a_folder_or_against_a_server(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "a.yaml").write_text(assignment("a"))
    alone = await run("opampctl", "validate", str(folder), OPAMPCTL_SERVER="")
    assert alone.status == 1
    assert "a.yaml:6: spec.template: ConfigTemplate basic@v1 is not defined here" in alone.err
    assert (await run("opampctl", "validate", str(folder / "a.yaml"), OPAMPCTL_SERVER="")).status == 0
    asked = await desk.ctl("validate", str(folder))
    assert asked.status == 1
    assert "there is no ConfigTemplate basic@v1" in asked.err
    await desk.ctl("apply", "-f", "-", stdin=TEMPLATE)
    assert (await desk.ctl("validate", str(folder))).status == 0
    assert (await desk.ctl("get", "assignments", "-o", "json")).out == "[]\n"
    away = await run("opampctl", "validate", str(folder), OPAMPCTL_SERVER="http://127.0.0.1:1")
    assert (away.status, "are not checked" in away.err) == (0, True)


async def test_validate_recognizes_settings_files(desk: Desk) -> None:
    done = await desk.ctl("validate", desk.file("relay.yaml", "node: {region: eu}\n"))
    assert done.status == 1
    assert "this is a settings file: check it with `opamp-relay check -c`" in done.err

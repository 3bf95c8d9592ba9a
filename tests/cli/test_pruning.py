from __future__ import annotations

import json

from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment, eventually
from tests.control.texts import TWO_STAGES
from tests.wire import TestAgent

__all__ = ["desk"]


def labelled(text: str, label: str) -> str:
    return text.replace("metadata: {", f"metadata: {{labels: {{team: {label}}}, ", 1)


async def test_prune_deletes_labelled_documents_that_are_not_given(desk: Desk) -> None:
    mine = labelled(assignment("mine"), "blue"), labelled(assignment("old", priority=1), "blue")
    others = assignment("plain", priority=2) + labelled(assignment("theirs", priority=3), "red")
    await desk.ctl("apply", "-f", desk.file("all.yaml", TEMPLATE + others + "".join(mine)))
    name = desk.file("mine.yaml", mine[0])
    tried = await desk.ctl("apply", "--prune", "-l", "team=blue", "--dry-run", "-f", name)
    assert tried.out == "ConfigAssignment/mine unchanged (dry run)\nConfigAssignment/old would be deleted\n"
    done = await desk.ctl("apply", "--prune", "-l", "team=blue", "-o", "json", "-f", name)
    assert json.loads(done.out)["pruned"] == [{"kind": "ConfigAssignment", "name": "old"}]
    listed = json.loads((await desk.ctl("get", "assignments", "-o", "json")).out)
    assert [d["metadata"]["name"] for d in listed] == ["mine", "plain", "theirs"]


async def test_prune_keeps_documents_in_use_and_refuses_to_orphan_agents(desk: Desk) -> None:
    used = labelled(TWO_STAGES, "blue"), labelled(assignment("old", priority=1), "blue")
    await desk.ctl("apply", "-f", desk.file("all.yaml", TEMPLATE + "".join(used)))
    agent = await TestAgent.over("websocket", desk.node.ports, "x")
    await agent.hello()
    await eventually(lambda: len(desk.plane.fleet.census.agents) == 1)
    name = desk.file(
        "mine.yaml", assignment("mine", rate=3, selector="{labels: {tier: none}}") + "  strategy: canary\n"
    )
    prune = ("apply", "--prune", "-l", "team=blue", "-f", name)
    tried = await desk.ctl(*prune, "--dry-run")
    assert "old: without it 1 agent would match nothing" in tried.err
    refused = await desk.ctl(*prune)
    assert (refused.status, "use --yes to delete it anyway" in refused.err) == (1, True)
    assert "mine" not in (await desk.ctl("get", "assignments")).out, "nothing was applied"
    done = await desk.ctl(*prune, "--yes")
    assert done.status == 0, done
    assert "ConfigAssignment/old deleted\n" in done.out
    assert "RolloutStrategy/canary kept: " in done.out
    assert "in use by ConfigAssignment mine" in done.out
    await agent.close()

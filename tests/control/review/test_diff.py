from __future__ import annotations

from typing import Any

import pytest

from relay.control.app import ControlPlane
from relay.errors import Refused
from relay.ids import sha256
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.reports import ONE, entry, up

COLLECTOR = """---
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: collector, version: v1}
spec:
  config:
    receivers: {otlp: {}, kafka: {}}
    exporters: {debug: {}}
    service: {pipelines: {logs: {receivers: [otlp, kafka], exporters: [debug]}}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: all}
spec: {template: {name: collector, version: v1}, priority: 9}
"""


PROD = assignment("prod", rate=5, priority=5, selector="{labels: {tier: prod}}")


async def diffed(plane: ControlPlane, *texts: str) -> dict[str, Any]:
    before = dict(plane.ledger.state.assignments)
    found = await plane.diffs.diff([("f", "".join(texts))])
    assert plane.ledger.state.assignments == before, "nothing changes"
    return found


@pytest.fixture
async def plane(programs: Programs) -> ControlPlane:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("low"), PROD)
    await up(plane.fleet, ONE)
    agents = [entry("a", tier="prod"), entry("b", tier="prod"), entry("c"), entry("d", accepts=False)]
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    return plane


async def test_diff_names_agents_and_changes(plane: ControlPlane) -> None:
    found = await diffed(plane, assignment("prod", rate=6, priority=5, selector="{labels: {tier: prod}}"))
    assert (found["agents_changed"], found["by_region"], found["by_assignment"]) == (2, {"eu": 2}, {"prod": 2})
    (pair,) = found["diffs"]
    assert (pair["agents"], pair["names"]) == (2, ["a", "b"])
    assert "-rate: 5\n+rate: 6\n" in pair["text"]
    same = await diffed(plane, PROD)
    assert (same["agents_changed"], same["diffs"]) == (0, [])
    assert [d["action"] for d in same["documents"]] == ["unchanged"]


async def test_orphaned_agents_are_named(plane: ControlPlane) -> None:
    await plane.documents.delete("ConfigAssignment", "low")
    narrower = assignment("prod", rate=5, priority=5, selector="{labels: {tier: prod, zone: x}}")
    found = await diffed(plane, narrower)
    assert found["orphans"] == ["a", "b"]
    assert found["diffs"][0]["to"] is None


async def test_conflicts_are_shown_and_other_problems_refused(plane: ControlPlane) -> None:
    found = await diffed(plane, assignment("other", priority=5, selector="{labels: {tier: prod}}"))
    assert "has the same priority 5" in found["conflicts"][0]
    with pytest.raises(Refused, match="is greater than the maximum"):
        await diffed(plane, assignment("prod", rate=1000))


async def test_missing_components_are_named(plane: ControlPlane) -> None:
    available = pb.AvailableComponents(hash=b"h")
    available.components["receivers"].sub_component_map["otlp"].SetInParent()
    body = available.SerializeToString(deterministic=True)
    reported = entry("a", tier="prod")
    state = link_pb2.AgentState.FromString(reported.state)
    state.components_digest = sha256(body)
    reported.state = state.SerializeToString()
    ack = await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=2, agents=[reported]))
    assert list(ack.want_effective_configs) == [sha256(body)]
    assert (await diffed(plane, COLLECTOR))["missing_components"] == []
    answer = link_pb2.StatusReport(sequence=3)
    answer.effective_configs.add(digest=sha256(body), body=body)
    await plane.fleet.report(ONE, answer)
    found = await diffed(plane, COLLECTOR)
    assert found["missing_components"] == [{"agent": "a", "components": ["receivers/kafka"]}]
    assert found["agents_changed"] == 3


async def test_secrets_are_hidden_but_their_change_shows(plane: ControlPlane) -> None:
    secret = TEMPLATE.replace("config:", "config:\n    auth: {password: hunter2}").replace("version: v1", "version: v2")
    found = await diffed(plane, secret, assignment("low", version="v2"))
    assert "hunter2" not in str(found)
    assert "password: '[secret 1]'" in found["diffs"][0]["text"]

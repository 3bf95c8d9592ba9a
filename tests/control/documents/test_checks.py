"""Problems between documents that are each well formed."""

from __future__ import annotations

import pytest

from relay.control.app import ControlPlane
from relay.errors import Refused
from relay.link.protocol.peer import Peer
from relay.pb.relay.v1 import link_pb2
from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.documents.applying import actions, refused
from tests.control.reports import ONE, entry, up
from tests.control.texts import TYPED, typed, variables


async def test_values_may_come_from_the_region(plane: ControlPlane) -> None:
    assert "requires a value for where" in (await refused(plane, TYPED, typed("a")))[0]
    await actions(plane, TYPED, typed("a"), variables("eu", "{where: here}"))
    (problem,) = await refused(plane, variables("eu", "{other: 1}"))
    assert "ConfigAssignment a: typed@v1 requires a value for where in region eu" in problem
    (problem,) = await refused(plane, typed("b", region="us", priority=1))
    assert "in region us" in problem


@pytest.mark.parametrize(
    ("one", "two"), [("{}", "{}"), ("{labels: {a: x}}", "{labels: {a: x, b: y}}"), ("{}", "{agent_ids: [p]}")]
)
async def test_conflicting_assignments_are_refused(plane: ControlPlane, one: str, two: str) -> None:
    (problem,) = await refused(plane, TEMPLATE, assignment("a", selector=one), assignment("b", selector=two))
    assert "has the same priority 0, and one selector includes the other" in problem
    await actions(
        plane, TEMPLATE, assignment("a", selector=one), assignment("b", selector=two, priority=1),
        assignment("c", selector=two, slot="other"),
    )  # fmt: skip


async def test_selectors_that_may_overlap_are_refused_if_a_known_agent_matches_both(plane: ControlPlane) -> None:
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("both", a="x", b="y")]))
    one = assignment("a", selector="{labels: {a: x}}")
    (problem,) = await refused(plane, TEMPLATE, one, assignment("b", selector="{labels: {b: y}}"))
    assert "agent both matches both" in problem
    await actions(plane, TEMPLATE, one, assignment("b", selector="{labels: {b: z}}"))


async def test_required_region_variables_cannot_be_deleted(plane: ControlPlane) -> None:
    texts = [TYPED, variables("eu", "{where: here}"), variables("us", "{where: there}"), typed("a")]
    await actions(plane, *texts)
    await plane.fleet.node_reporting(Peer("eu", "one"))
    with pytest.raises(Refused, match="requires a value for where in region eu"):
        await plane.documents.delete("RegionVariables", "eu")
    await plane.documents.delete("RegionVariables", "us")


async def test_strategy_must_exist_and_cannot_be_deleted_in_use(plane: ControlPlane) -> None:
    strategy = (
        "---\napiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {name: canary}\n"
        "spec: {stages: [{name: a, percentage: 5}], windows: [{time_zone: Europe/Berlin}]}\n"
    )
    named = assignment("a") + "  strategy: canary\n"
    assert await refused(plane, TEMPLATE, named) == ["f.yaml:22: spec.strategy: there is no RolloutStrategy canary"]
    wrong = strategy.replace("Europe/Berlin", "Europe/Nowhere")
    assert any("'Europe/Nowhere' is not a time zone" in p for p in await refused(plane, wrong))
    await actions(plane, TEMPLATE, strategy, named)
    with pytest.raises(Refused, match="in use by ConfigAssignment a"):
        await plane.documents.delete("RolloutStrategy", "canary")


BROKEN = """---
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: broken, version: v1}
spec:
  config:
    receivers: {otlp: {}}
    exporters: {debug: {}}
    service: {pipelines: {logs: {receivers: [kafka], exporters: [debug]}}}
"""


async def test_malformed_collector_config_is_warned_about_or_refused(programs: Programs) -> None:
    plane = await programs.opened()
    (applied,) = (await plane.documents.apply([("f", BROKEN)], dry_run=True)).applied
    assert "f:9: spec.config.service.pipelines.logs.receivers.0: kafka is not defined" in applied.warnings[0]
    await programs.stop(plane)
    strict = await programs.opened(policies={"config_update": {"validation": "enforce"}})
    with pytest.raises(Refused, match="kafka is not defined"):
        await strict.documents.apply([("f", BROKEN)])
    await programs.stop(strict)
    lax = await programs.opened(policies={"config_update": {"validation": "off"}})
    (applied,) = (await lax.documents.apply([("f", BROKEN)])).applied
    assert applied.warnings == ()

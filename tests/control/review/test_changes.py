from __future__ import annotations

from typing import Any

import pytest

from relay.control.app import ControlPlane
from relay.control.review.changes import Changes
from relay.errors import NotFound
from relay.ids import sha256
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.resources import variables_resource
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.reports import ONE, up
from tests.fleet.agents import record
from tests.packages import digest, push

VARIABLES = """---
apiVersion: opamp.io/v1
kind: RegionVariables
metadata: {name: local}
spec: {values: {level: WORD}}
"""
SECRET = """---
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: basic, version: v2}
spec:
  variables:
    - {name: rate, type: int, default: 1}
    - {name: password, type: string, default: hush}
  config: {rate: "{{.rate}}", exporter: {password: "{{.password}}"}}
"""


async def over(plane: ControlPlane, name: str) -> Any:

    async def state() -> bool:
        return bool((await plane.status.of(name))["state"] == "completed")

    await eventually(state)
    return await changes(plane).of(name)


def changes(plane: ControlPlane) -> Changes:
    return plane.changes


async def test_rollout_diff_shows_values_and_configs(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, VARIABLES.replace("WORD", "warn"), assignment("a", rate=33))
    first = await over(plane, "a-1")
    assert first["from"] is None
    assert [c["path"] for c in first["changes"]] == ["template", "values.rate", "variables.local"]
    assert "+rate: 33\n" in first["configs"][0]["text"]
    await apply(plane, assignment("a", rate=44))
    second = await over(plane, "a-2")
    assert second["changes"] == [{"path": "values.rate", "before": 33, "after": 44}]
    (config,) = second["configs"]
    assert config["regions"] == ["local"]
    assert "-rate: 33\n+rate: 44\n" in config["text"]
    await apply(plane, VARIABLES.replace("WORD", "debug"))
    third = await over(plane, "a-3")
    assert [c["path"] for c in third["changes"]] == ["variables.local"]
    assert "level: warn" in third["configs"][0]["text"]
    assert await changes(plane).of("a") == third, "an assignment's own name is its latest"
    assert (await changes(plane).of("a-2"))["configs"] == second["configs"], "long after"
    with pytest.raises(NotFound):
        await changes(plane).of("b-1")


async def test_secrets_are_masked_but_their_change_shows(programs: Programs) -> None:
    plane = await programs.opened()
    one = assignment("a", version="v2").replace("rate: 1", "rate: 1, password: one")
    await apply(plane, SECRET, one)
    await over(plane, "a-1")
    await apply(plane, one.replace("password: one", "password: two"))
    shown = await over(plane, "a-2")
    assert [c["path"] for c in shown["changes"]] == ["values.password"]
    assert shown["changes"][0]["before"] != shown["changes"][0]["after"]
    assert "one" not in str(shown["changes"][0]["before"])
    assert "password: two" not in shown["configs"][0]["text"]
    assert "+  password: '[secret" in shown["configs"][0]["text"]


async def test_lookup_by_any_hash(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("a", rate=33))
    await over(plane, "a-1")
    status = await plane.status.of("a-1")
    found = await changes(plane).resolve_hash(status["candidate"])
    assert (found["kind"], found["name"]) == ("revision", "basic@v1 of a-1")
    assert "rate: 33" in found["slots"][""]["body"]
    await apply(plane, assignment("a", rate=44))
    await over(plane, "a-2")
    assert (await changes(plane).resolve_hash(status["candidate"]))["name"] == "basic@v1 of a-1", (
        "whose candidate it was"
    )
    assert (await changes(plane).resolve_hash(status["digest"][:16]))["kind"] == "change"
    generation, _ = await plane.versions.listing("ConfigAssignment", "a")
    document = await changes(plane).resolve_hash(generation["document_digest"])
    assert (document["kind"], document["name"]) == ("document", "ConfigAssignment/a@1")
    with pytest.raises(NotFound):
        await changes(plane).resolve_hash("0" * 16)


async def test_lookup_of_pinned_and_reported_hashes(programs: Programs) -> None:
    plane = await programs.opened()
    variables = VARIABLES.replace("name: local", "name: eu, labels: {team: x}")
    await apply(plane, TEMPLATE, variables)
    pin = variables_resource(plane.ledger.state.catalog.variables["eu"])[0].rpartition("@")[2]
    found = await changes(plane).resolve_hash(pin)
    assert (found["kind"], "WORD" in found["slots"][""]["body"]) == ("variables", True)
    await push(plane, b"linux")
    (version,) = plane.ledger.state.catalog.packages.values()
    assert (await changes(plane).resolve_hash(version.package.pin.rpartition("@")[2]))["kind"] == "package"
    file = await changes(plane).resolve_hash(digest(b"linux")[:12])
    assert (file["kind"], file["name"]) == ("file", "of otelcol@1")
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"rate: 8"
    made = record("a")
    made.effective_config_digest = sha256(effective.SerializeToString())
    agent = link_pb2.AgentEntry(instance_uid=made.instance_uid, state=made.state())
    body = link_pb2.EffectiveConfigBody(digest=made.effective_config_digest, body=effective.SerializeToString())
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[agent], effective_configs=[body]))
    shown = await changes(plane).resolve_hash(made.effective_config_digest.hex()[:16])
    assert (shown["kind"], shown["slots"][""]["body"]) == ("effective config", "rate: 8")

from __future__ import annotations

from relay.control.review.drift import differing, drift
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import TestAgent

OBSERVED = assignment("watch", rate=5) + "  observe_only: true\n"


def test_additional_keys_are_no_drift() -> None:
    assert differing({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": 3}) == []
    assert differing({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}}) == [
        {"path": "a.b", "wanted": 1, "found": 2},
        {"path": "c", "wanted": [1], "found": None},
    ]


async def test_observing_assignment_offers_nothing_and_shows_drift(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, OBSERVED)
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    logs = b"service: {telemetry: {logs: {level: info}}}\n"
    bodies = {"same": logs + b"rate: 5\nmore: 1\n", "different": logs + b"rate: 6\n", "unknown": b""}
    agents = []
    for name, body in bodies.items():
        agent = await TestAgent.over("websocket", node.ports, name)
        agents.append(agent)
        assert not (await agent.hello()).HasField("remote_config")
        if body:
            config = pb.EffectiveConfig()
            config.config_map.config_map[""].body = body
            await agent.report(effective_config=config)
    await eventually(lambda: len(plane.fleet.census.agents) == 3 and len(plane.fleet.bodies) == 2)
    found = await drift(plane.fleet, plane.ledger.state)
    assert {e["agent"]: e["state"] for e in found} == {name: name for name in bodies}
    different = next(e for e in found if e["agent"] == "different")
    assert different["differences"] == [{"path": "rate", "wanted": 5, "found": 6}]
    await apply(plane, assignment("watch", rate=5))
    offered = await agents[1].pipe.pushed()
    assert offered.HasField("remote_config")
    assert await drift(plane.fleet, plane.ledger.state) == []
    for agent in agents:
        await agent.close()

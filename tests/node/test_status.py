from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually


async def test_condition_over_the_life_of_a_node(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a"))
    node = await programs.node()
    assert (node.status.condition().ready, node.status.condition().reason) == (False, "no policy has been received")
    assert node.status.condition().status["link"] == "down"
    await programs.stop(node)
    assert node.status.condition().reason == "draining"
    again = await programs.node(plane.ports["link"])
    await eventually(lambda: again.policy.accepted)
    condition = again.status.condition()
    assert (condition.ready, condition.status["link"], condition.status["manifest"]) == (True, "up", [1, 1])
    assert again.status.message().manifest.epoch == 1
    again.status.listening = False
    assert again.status.condition().reason == "starting"
    again.status.listening = True


async def test_problems_are_named(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"max_agents": 1}})
    assert node.status.degraded == []
    node.link.record_message()
    node.link.refusal = "another node has this name"
    node.packages.problems["1" * 64] = "damaged upstream"
    node.store.damaged[("records", b"x")] = None
    node.registry.new(b"u" * 16)
    assert node.status.degraded == [
        "store: 1 damaged values were dropped: records 78",
        "package 111111111111: damaged upstream",
        "agents: 1 of 1 (server.limits.max_agents) are in use",
        "link: reports are refused: another node has this name",
    ]
    (problem,) = node.status.message().blob_problems
    assert problem.reason == "damaged upstream"


async def test_gauges_match_the_status(programs: Programs) -> None:
    node = await programs.node()
    values = {name: value() for name, (_, value) in node.status.gauges().items()}
    assert values["opamp_relay_agents"] == values["opamp_relay_link_up"] == values["opamp_relay_store_degraded"] == 0
    assert values["opamp_relay_policy_age_seconds"] > 0

"""The fleet as people see it."""

from relay.control.fleet import views
from relay.control.fleet.fleet import Fleet
from relay.pb.relay.v1 import link_pb2
from tests.control.reports import ONE, entry, shown, up


async def test_uids_of_one_agent_are_one_row_unless_both_are_live(fleet: Fleet) -> None:
    await up(fleet, ONE)
    old = entry("a", started=1, connected=False, uid=b"1" * 16)
    new = entry("a", started=2, uid=b"2" * 16)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[old, new]))
    assert [a.uid for a in fleet.census.visible()] == [b"2" * 16]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=2, agents=[entry("a", started=1, uid=b"1" * 16)]))
    assert len(list(fleet.census.visible())) == 2


async def test_nodes_and_regions(fleet: Fleet) -> None:
    await up(fleet, ONE)
    report = link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b", healthy=False)])
    report.rollup.agents, report.rollup.connected, report.rollup.healthy, report.rollup.unhealthy = 2, 2, 1, 1
    report.rollup.config_status["APPLIED"] = 2
    report.status.manifest.epoch, report.status.manifest.number, report.status.policy_age_s = 1, 7, 0.5
    report.status.rejected.add(name="ConfigAssignment/x", digest=b"\x01", reason="bad")
    await fleet.report(ONE, report)
    (node,) = views.nodes(fleet.census)
    assert (node["manifest"], node["agents"]) == ([1, 7], 2)
    assert 0.5 <= node["policy_age_s"] < 10
    assert node["rejected"] == [{"name": "ConfigAssignment/x", "digest": "01", "reason": "bad"}]
    (region,) = views.regions(fleet.census)
    assert (region["connected"], region["unhealthy"], dict(region["config_status"])) == (2, 1, {"APPLIED": 2})
    assert views.connected_by_region(fleet.census) == {"eu": 2}
    fleet.node_gone(ONE)
    (region,) = views.regions(fleet.census)
    assert (region["connected"], region["unknown"]) == (0, 2)
    assert (await shown(fleet, "a"))["connected"] is None


async def test_agents_are_counted_by_class(fleet: Fleet) -> None:
    await up(fleet, ONE)
    agents = [entry("a"), entry("b", healthy=False), entry("c", healthy=None), entry("d", connected=False)]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=agents))
    counted = {("eu", "UNSET", "true"): 1, ("eu", "UNSET", "false"): 1, ("eu", "UNSET", "unknown"): 2}
    assert views.agents_by_class(fleet.census) == counted
    fleet.node_gone(ONE)
    assert views.agents_by_class(fleet.census) == {("eu", "UNSET", "unknown"): 4}

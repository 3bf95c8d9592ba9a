from __future__ import annotations

from tests.conftest import Programs, eventually
from tests.wire import TestAgent


async def test_report_carries_sums_and_node_status(programs: Programs) -> None:
    node = await programs.node()
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await eventually(lambda: len(node.sender))
    report = node.reports.next()
    assert report is not None
    assert [entry.instance_uid for entry in report.agents] == [agent.uid]
    assert report.rollup.connected == 1
    assert (report.status.policy_age_s, report.status.leaving) == (-1.0, False)
    node.sender.send_status = False
    assert node.reports.next() is None
    await agent.close()

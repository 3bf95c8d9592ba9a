from relay.pb.relay.v1 import link_pb2
from relay.testing.control_plane import ScriptedControlPlane
from tests.conftest import Programs, eventually
from tests.wire import TestAgent


async def test_reports_are_resent_until_acknowledged(programs: Programs) -> None:
    upstream = ScriptedControlPlane()
    await upstream.start()
    node = await programs.node(upstream.port)
    await eventually(lambda: node.sender.agreed)
    upstream.acknowledging = False
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()

    def reported() -> list[link_pb2.StatusReport]:
        return [r for r in upstream.reports if r.agents]

    await eventually(reported)
    assert node.sender.in_flight
    port = upstream.port
    await upstream.stop()
    back = ScriptedControlPlane()
    await back.start(port)
    await eventually(lambda: [r for r in back.reports if r.agents])
    await eventually(lambda: not node.sender.in_flight and not len(node.sender))
    assert back.reports[0].hello.name == "one"
    assert not back.reports[0].sequence
    await agent.close()
    await programs.stop(node)
    await back.stop()


async def test_idle_agents_cost_less_than_a_message_a_second(programs: Programs) -> None:
    """Ten agents are enough: the traffic does not depend on the number of idle agents."""
    upstream = ScriptedControlPlane()
    await upstream.start()
    node = await programs.node(upstream.port)
    agents = [await TestAgent.over("websocket", node.ports) for _ in range(10)]
    for agent in agents:
        await agent.hello()
    await eventually(lambda: any(len(r.shards) == 256 for r in upstream.reports))
    await eventually(lambda: not node.sender.in_flight)
    before = len(upstream.reports)
    for _ in range(20):
        for agent in agents:
            await agent.heartbeat()
    assert len(upstream.reports) == before
    for agent in agents:
        await agent.close()
    await programs.stop(node)
    await upstream.stop()

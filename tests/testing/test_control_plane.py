from relay.testing.control_plane import ScriptedControlPlane
from tests.conftest import Programs, eventually


async def test_scripted_control_plane_records_what_nodes_send(programs: Programs) -> None:
    scripted = ScriptedControlPlane()
    await scripted.start()
    node = await programs.node(scripted.port)
    scripted.send({}, (1, 1))
    assert not (await scripted.acks.get()).refused
    await eventually(lambda: scripted.hellos and scripted.reports)
    await programs.stop(node)
    await scripted.stop()

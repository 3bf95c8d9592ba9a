from __future__ import annotations

import pytest

from relay.errors import PortError
from tests.conftest import Programs
from tests.wire import TestAgent


async def test_all_ports_open_and_turn_away_refuses_newcomers(programs: Programs) -> None:
    node = await programs.node()
    assert set(node.serving.ports) == {"websocket", "http", "grpc", "metrics"}
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    assert len(node.serving.connections) == node.serving.places.used == 1
    node.serving.refuse_new()
    with pytest.raises(Exception, match="503"):
        await TestAgent.over("websocket", node.ports, "b")
    await agent.close()


async def test_port_in_use_error_names_its_setting(programs: Programs) -> None:
    first = await programs.node(name="one")
    with pytest.raises(PortError, match=r"set server\.grpc\.endpoint, or --grpc HOST:PORT"):
        await programs.node(name="two", ports={"grpc": first.ports["grpc"]})

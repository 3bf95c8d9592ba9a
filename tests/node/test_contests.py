"""Ownership of an instance_uid in whole nodes, over every transport where possible."""

from __future__ import annotations

import pytest

from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import Programs, eventually
from tests.node.test_hub import TRANSPORTS, rate_of, ready_node
from tests.wire import PING, PONG, RawSocket, TestAgent, WebSocketPipe, describe, frame


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_second_agent_under_one_uid_gets_another(programs: Programs, transport: str) -> None:
    node = await ready_node(programs)
    first = await TestAgent.over(transport, node.ports, "first")
    await first.hello()
    await first.heartbeat()
    second = await TestAgent.over(transport, node.ports, "second", uid=first.uid)
    answer = await second.hello()
    assert not answer.HasField("agent_identification"), "it may be the first one that has changed"
    assert not (await first.heartbeat()).HasField("agent_identification")
    answer = await second.heartbeat() if transport == "http" else await second.pipe.pushed()
    assert answer.instance_uid == first.uid
    second.uid = answer.agent_identification.new_instance_uid
    assert len(second.uid) == 16
    assert (await second.heartbeat()).flags == pb.ServerToAgentFlags_ReportFullState
    assert rate_of(await second.hello()) == b"rate: 1"
    again = await first.hello()
    assert not again.HasField("agent_identification"), "the first never gets another uid"
    records = {node.registry.get(a.uid).agent_id for a in (first, second)}  # type: ignore[union-attr]
    assert records == {"first", "second"}
    assert len(node.registry) == 2
    await first.close()
    await second.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_upgraded_agent_is_the_same_agent(programs: Programs, transport: str) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over(transport, node.ports, "a")
    await agent.hello(version="1")
    half_open = agent.pipe
    if transport != "http":
        agent = await TestAgent.over(transport, node.ports, "a", uid=agent.uid)
    agent.sequence = -1
    answer = await agent.hello(version="2")
    assert not answer.HasField("agent_identification")
    assert rate_of(answer) == b"rate: 1"
    assert len(node.registry) == 1
    assert node.hub.connected == 1
    await agent.close()
    await half_open.close()


async def silent_agent(node: Node) -> tuple[RawSocket, TestAgent]:
    """An agent that answers no pings."""
    socket = await RawSocket.open(node.ports["websocket"])
    agent = TestAgent(WebSocketPipe(socket), "old")
    await agent.hello()
    return socket, agent


async def test_newcomer_takes_the_uid_if_the_owner_answers_no_ping(programs: Programs) -> None:
    node = await ready_node(programs)
    silent, old = await silent_agent(node)
    new = await TestAgent.over("websocket", node.ports, "new", uid=old.uid)
    assert not (await new.hello()).HasField("remote_config")
    assert rate_of(await new.pipe.pushed()) == b"rate: 1"
    record = node.registry.get(new.uid)
    assert record is not None
    assert record.agent_id == "new"
    opcode, _ = await silent.read()
    assert opcode == PING
    assert await silent.close_code() == 1000
    returned = await TestAgent.over("websocket", node.ports, "old", uid=old.uid)
    returned.sequence = old.sequence
    assert not (await returned.hello()).HasField("agent_identification"), "it was here first"
    assert (await new.pipe.pushed()).HasField("agent_identification")
    for agent in (old, new, returned):
        await agent.close()


async def test_pong_keeps_the_uid(programs: Programs) -> None:
    node = await ready_node(programs)
    socket = await RawSocket.open(node.ports["websocket"])
    first = TestAgent(WebSocketPipe(socket), "first")
    await first.hello()
    second = await TestAgent.over("websocket", node.ports, "second", uid=first.uid)
    await second.hello()
    assert (await socket.read())[0] == PING
    socket.write(frame(b"", PONG))
    assert (await second.pipe.pushed()).HasField("agent_identification")
    await first.close()
    await second.close()


async def test_waiting_newcomer_gets_the_uid_when_the_owner_leaves(programs: Programs) -> None:
    node = await ready_node(programs)
    first = await TestAgent.over("websocket", node.ports, "first")
    await first.hello()
    gone, second = [await TestAgent.over("websocket", node.ports, n, uid=first.uid) for n in ("gone", "second")]
    await gone.hello()
    await gone.close()
    await eventually(lambda: not node.hub._contests._challenges)
    await second.hello()
    await first.close()
    assert rate_of(await second.pipe.pushed()) == b"rate: 1"
    await second.close()


async def test_client_that_ignores_its_new_uid_twice_is_closed(programs: Programs) -> None:
    node = await ready_node(programs)
    first = await TestAgent.over("websocket", node.ports, "first")
    await first.hello()
    second = await TestAgent.over("websocket", node.ports, "second", uid=first.uid)
    await second.hello()
    await first.heartbeat()
    assert (await second.pipe.pushed()).HasField("agent_identification")
    assert (await second.hello()).HasField("agent_identification")
    assert isinstance(second.pipe, WebSocketPipe)
    message = second.message()
    describe(message, "second")
    second.pipe.socket.write(frame(b"\0" + message.SerializeToString()))
    assert await second.pipe.socket.close_code() == 1008
    await eventually(lambda: node.metrics.closed["duplicate_uid"] == 1)
    await first.close()
    await second.close()


async def test_returning_agent_replaces_its_old_connection(programs: Programs) -> None:
    node = await ready_node(programs)
    old = await TestAgent.over("websocket", node.ports, "a")
    answer = await old.hello()
    await old.applied(answer.remote_config.config_hash)
    new = await TestAgent.over("websocket", node.ports, "a", uid=old.uid)
    new.sequence = old.sequence
    record = node.registry.get(new.uid)
    assert record is not None
    assert await new.heartbeat() == pb.ServerToAgent(instance_uid=new.uid, capabilities=0x1F)
    assert isinstance(old.pipe, WebSocketPipe)
    assert await old.pipe.socket.close_code() == 1000
    await old.close()
    await eventually(lambda: node.metrics.closed["replaced"] == 1)
    record = node.registry.get(new.uid)
    assert record is not None
    assert record.connected, "the end of the old connection does not make the agent disconnected"
    await new.heartbeat()
    await new.close()


async def test_unidentified_client_cannot_take_over_a_uid(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("websocket", node.ports)
    await agent.hello()
    other = await TestAgent.over("websocket", node.ports)
    answer = await other.pipe.exchange(pb.AgentToServer(instance_uid=agent.uid, sequence_num=7, capabilities=0x3807))
    assert answer == pb.ServerToAgent(instance_uid=agent.uid, flags=pb.ServerToAgentFlags_ReportFullState)
    assert (await agent.heartbeat()) == pb.ServerToAgent(instance_uid=agent.uid), "it was not moved"
    await agent.close()
    record = node.registry.get(agent.uid)
    assert record is not None
    await eventually(lambda: not record.connected)
    await other.pipe.exchange(pb.AgentToServer(instance_uid=agent.uid, sequence_num=8, capabilities=0x3807))
    assert record.connected
    await other.close()


async def test_winning_newcomer_over_http_is_offered_its_config(programs: Programs) -> None:
    node = await ready_node(programs)
    _, old = await silent_agent(node)
    newcomer = await TestAgent.over("http", node.ports, "new", uid=old.uid)
    assert not (await newcomer.hello()).HasField("remote_config")
    await eventually(lambda: node.hub.connected == 0)
    first = await newcomer.heartbeat()
    assert first.flags == pb.ServerToAgentFlags_ReportFullState, "what is known is of the one before"
    second = await newcomer.hello()
    assert rate_of(second if second.HasField("remote_config") else first) == b"rate: 1"
    await eventually(lambda: node.registry.get(newcomer.uid).agent_id == "new")  # type: ignore[union-attr]
    await newcomer.close()
    await old.close()


async def test_second_of_two_simultaneous_clones_gets_another_uid(programs: Programs) -> None:
    node = await ready_node(programs)
    first = await TestAgent.over("http", node.ports, "first")
    second = await TestAgent.over("http", node.ports, "second", uid=first.uid)
    await first.hello()
    await second.hello()
    uid = first.uid
    assert (await first.heartbeat()).flags == pb.ServerToAgentFlags_ReportFullState, "either may have sent it"
    assert not (await first.hello()).HasField("agent_identification"), "who was here first never changes"
    answer = await second.heartbeat()
    assert answer.HasField("agent_identification"), "the other one does with its next message"
    second.uid = answer.agent_identification.new_instance_uid
    for _ in range(6):
        for agent in (first, second):
            answer = await agent.heartbeat()
            if answer.flags & pb.ServerToAgentFlags_ReportFullState:
                answer = await agent.hello()
            assert not answer.HasField("agent_identification")
    assert (first.uid, second.uid != uid) == (uid, True)
    assert {record.agent_id for record in node.registry} == {"first", "second"}
    await first.close()
    await second.close()

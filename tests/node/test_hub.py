"""Connections, sessions and policy together, over every transport where possible."""

from __future__ import annotations

import asyncio
import json

import pytest

from relay.ids import format_uid
from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import BINARY, RawSocket, TestAgent, WebSocketPipe, describe, frame, is_gone, new_uid

TRANSPORTS = ("websocket", "http", "grpc")


async def ready_node(programs: Programs, *texts: str) -> Node:
    """A node that has a policy."""
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, *(texts or (assignment("all"),)))
    node = await programs.node(control_plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    return node


def rate_of(answer: pb.ServerToAgent) -> bytes:
    return answer.remote_config.config.config_map[""].body.splitlines()[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_agent_is_offered_its_config_and_reports_it(programs: Programs, transport: str) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over(transport, node.ports)
    answer = await agent.hello()
    assert answer.capabilities == 0x1F
    assert rate_of(answer) == b"rate: 1"
    assert await agent.applied(answer.remote_config.config_hash) == pb.ServerToAgent(instance_uid=agent.uid)
    for _ in range(3):
        assert await agent.heartbeat() == pb.ServerToAgent(instance_uid=agent.uid)
    record = node.registry.get(agent.uid)
    assert record is not None
    assert (record.transport, record.connected, record.sequence_num) == (transport, True, 4)
    assert node.metrics.config_updates["success"] == 1
    await agent.close()
    if transport != "http":
        await eventually(lambda: not record.connected)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_policy_change_arrives_at_once_or_with_the_next_poll(programs: Programs, transport: str) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    node = await programs.node(control_plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over(transport, node.ports)
    await agent.applied((await agent.hello()).remote_config.config_hash)
    await apply(control_plane, assignment("all", rate=2))
    if transport == "http":
        await eventually(lambda: node.policy.receiver.version == (1, 2))
        await asyncio.sleep(0.05)
        answer = await agent.heartbeat()
    else:
        answer = await agent.pipe.pushed()
    assert rate_of(answer) == b"rate: 2"
    failed = await agent.failed(answer.remote_config.config_hash, "no such receiver")
    assert rate_of(failed) == b"rate: 1", "what it applied last of the same assignment"
    assert node.metrics.config_updates["failure"] == 1
    await agent.close()


async def test_labels_select_the_config(programs: Programs) -> None:
    selector = "{labels: {tier: production}}"
    node = await ready_node(programs, assignment("all"), assignment("prod", rate=9, priority=9, selector=selector))
    plain, prod = [await TestAgent.over("websocket", node.ports) for _ in range(2)]
    assert rate_of(await plain.hello(tier="development")) == b"rate: 1"
    assert rate_of(await prod.hello(tier="production")) == b"rate: 9"
    await plain.close()
    await prod.close()


async def test_records_under_unused_uids_are_removed(programs: Programs) -> None:
    node = await ready_node(programs)
    one, two, three = [await TestAgent.over("http", node.ports, "a") for _ in range(3)]
    for agent in (one, two, three):
        await agent.hello()
    assert len(node.registry) == 3, "all of them may be live"
    for agent in (one, two):
        node.hub._live[agent.uid].session.last_seen -= 200
    node.hub.sweep()
    await eventually(lambda: len(node.registry) == 1)
    assert node.registry.get(three.uid) is not None
    for agent in (one, two, three):
        await agent.close()


async def test_many_agents_share_one_connection(programs: Programs) -> None:
    node = await ready_node(programs)
    socket = await RawSocket.open(node.ports["websocket"])
    agents = [TestAgent(WebSocketPipe(socket)) for _ in range(3)]
    for agent in agents:
        assert rate_of(await agent.hello()) == b"rate: 1"
    for agent in agents:
        assert (await agent.heartbeat()).instance_uid == agent.uid
    assert node.hub.connected == 3
    await socket.close()
    await eventually(lambda: node.hub.connected == 0)


async def test_temporary_uid_is_replaced_and_the_agent_stays_known(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("websocket", node.ports, "temp")
    message = agent.message(flags=pb.AgentToServerFlags_RequestInstanceUid)
    message.remote_config_status.SetInParent()
    describe(message, "temp")
    answer = await agent.pipe.exchange(message)
    old, agent.uid = agent.uid, answer.agent_identification.new_instance_uid
    assert answer.instance_uid == old
    reply = await agent.heartbeat()
    assert reply.instance_uid == agent.uid
    assert not reply.flags, "the sequence goes on and the record moved along"
    assert node.registry.get(old) is None
    record = node.registry.get(agent.uid)
    assert record is not None
    assert record.agent_id == "temp"
    await agent.close()


async def test_agent_limits(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"max_agents": 2, "max_agents_per_connection": 1, "retry_after": 60}})
    socket = await RawSocket.open(node.ports["websocket"])
    agents = [TestAgent(WebSocketPipe(socket)) for _ in range(2)]
    await agents[0].hello()
    refused = await agents[1].hello()
    assert refused.error_response.type == pb.ServerErrorResponseType_Unavailable
    other = await TestAgent.over("websocket", node.ports)
    await other.hello()
    third = await TestAgent.over("websocket", node.ports)
    full = await third.hello()
    assert full.error_response.retry_info.retry_after_nanoseconds == 60 * 10**9
    assert node.metrics.refused["agents"] == node.metrics.refused["agents_per_connection"] == 1
    for _ in range(20):
        assert (await agents[1].hello()).HasField("error_response")
    assert not (await agents[0].heartbeat()).HasField("error_response"), "being full is nobody's fault"
    for agent in (agents[0], other, third):
        await agent.close()


async def test_shared_connection_survives_one_bad_agent(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"max_bad_messages": 3}})
    socket = await RawSocket.open(node.ports["websocket"])
    good, bad = [TestAgent(WebSocketPipe(socket), name) for name in ("good", "bad")]
    await good.hello()
    await bad.hello()
    garbage = frame(b"\0" + b"\x0a\x10" + bad.uid + b"\x1a\xff")
    for _ in range(10):
        socket.write(garbage)
        assert (await socket.message()).error_response.type == pb.ServerErrorResponseType_BadRequest
        assert not (await good.heartbeat()).HasField("error_response")
    connected = [record.connected for record in node.registry]
    assert connected == [True, False], "the one that sent them is detached"
    await bad.heartbeat()
    assert all(record.connected for record in node.registry), "and its next message brings it back"
    await socket.close()


async def test_good_messages_offset_bad_ones(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"max_bad_messages": 2}})
    agent = await TestAgent.over("websocket", node.ports)
    await agent.hello()
    assert isinstance(agent.pipe, WebSocketPipe)
    garbage = frame(b"\0" + b"\x0a\x10" + agent.uid + b"\x1a\xff")
    for _ in range(3):
        agent.pipe.socket.write(garbage)
        assert (await agent.pipe.socket.message()).HasField("error_response")
        for _ in range(100):
            await agent.heartbeat()
    agent.pipe.socket.write(garbage * 2)
    assert await agent.pipe.socket.close_code() == 1008
    await agent.close()


async def test_dead_agents_behind_a_gateway_expire_and_return(
    programs: Programs,
) -> None:
    node = await programs.node()
    socket = await RawSocket.open(node.ports["websocket"])
    beats, silent, quiet = [TestAgent(WebSocketPipe(socket), name) for name in ("beats", "silent", "quiet")]
    for agent in (beats, silent):
        await agent.hello()
    message = quiet.message(capabilities=0x1807)
    describe(message, "quiet")
    await quiet.pipe.exchange(message)
    live = {agent.name: node.hub._live[agent.uid] for agent in (beats, silent, quiet)}
    for name in ("silent", "quiet"):
        live[name].session.last_seen -= 91
    node.hub.sweep()
    records = {agent.name: node.registry.get(agent.uid) for agent in (beats, silent, quiet)}
    assert {name: r.connected for name, r in records.items() if r} == {"beats": True, "silent": False, "quiet": True}
    live["quiet"].session.last_seen -= 210
    node.hub.sweep()
    assert not records["quiet"].connected  # type: ignore[union-attr]
    assert not (await silent.heartbeat()).flags
    assert records["silent"].connected  # type: ignore[union-attr]
    other = await TestAgent.over("websocket", node.ports, "beats", uid=beats.uid)
    other.sequence = beats.sequence
    await other.heartbeat()
    await silent.heartbeat()
    await other.close()
    await socket.close()


async def test_full_state_requests_are_paced(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"full_state_per_second": 5}})
    agents = [await TestAgent.over("websocket", node.ports) for _ in range(10)]
    asked = [bool((await agent.heartbeat()).flags) for agent in agents]
    assert asked == [True] * 5 + [False] * 5
    for agent in agents[5:]:
        assert (await agent.pipe.pushed()).flags == pb.ServerToAgentFlags_ReportFullState
    assert node.metrics.full_state_requests == 10
    for agent in agents:
        await agent.close()


async def test_large_attributes_and_deep_health_are_handled(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("websocket", node.ports)
    assert rate_of(await agent.hello(big="x" * 1_000_000)) == b"rate: 1"
    health = b""
    for _ in range(200):
        entry = b"\x0a\x01x\x12" + _varint(len(health)) + health
        health = b"\x32" + _varint(len(entry)) + entry
    body = b"\0\x0a\x10" + agent.uid + b"\x2a" + _varint(len(health)) + health
    assert isinstance(agent.pipe, WebSocketPipe)
    agent.pipe.socket.write(frame(body, BINARY))
    assert (await agent.pipe.pushed()).error_response.type == pb.ServerErrorResponseType_BadRequest
    assert not (await agent.heartbeat()).HasField("error_response")
    await agent.close()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


async def test_http_agent_that_stops_polling_is_gone(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("http", node.ports)
    await agent.hello()
    await agent.heartbeat()
    record = node.registry.get(agent.uid)
    assert record is not None
    node.hub.sweep()
    assert node.hub.connected == 1
    live = node.hub._live[agent.uid]
    live.session.last_seen -= 200
    node.hub.sweep()
    assert (record.connected, node.hub.connected) == (False, 0)
    assert not (await agent.heartbeat()).flags, "it is known when it comes back"
    assert node.hub.connected == 1
    await agent.close()


async def test_released_agent_is_closed_and_forgotten(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("websocket", node.ports)
    await agent.hello()
    node.hub.release(agent.uid)
    node.hub.release(new_uid())
    assert node.registry.get(agent.uid) is None
    assert isinstance(agent.pipe, WebSocketPipe)
    assert await agent.pipe.socket.close_code() == 1001
    assert await is_gone(agent.pipe.socket.reader)
    await agent.close()


async def test_agent_released_during_a_policy_change(programs: Programs) -> None:
    node = await ready_node(programs)
    agents = [await TestAgent.over("websocket", node.ports) for _ in range(3)]
    for agent in agents:
        await agent.hello()
    node.hub._offer_if_changed(live := node.hub._live[agents[0].uid], 0.0)
    node.hub.release(agents[0].uid)
    live.session.sent_hash = b""
    node.hub._offer_if_changed(live, 0.0)
    node.registry.changed(live.session.record)
    node.registry._work_off()
    assert node.registry.get(agents[0].uid) is None
    for agent in agents:
        await agent.close()


async def test_agent_is_queued_once_for_full_state(programs: Programs) -> None:
    node = await programs.node(server={"limits": {"full_state_per_second": 0.001}})
    first = await TestAgent.over("websocket", node.ports)
    assert (await first.heartbeat()).flags
    agent = await TestAgent.over("websocket", node.ports)
    for _ in range(20):
        agent.sequence += 1
        assert not (await agent.heartbeat()).flags
    assert node.hub.asking == 1
    await first.close()
    await agent.close()


async def test_undescribed_agent_leaves_no_record(programs: Programs) -> None:
    node = await programs.node()
    agent = await TestAgent.over("websocket", node.ports)
    await agent.heartbeat()
    assert len(node.registry) == 1
    await agent.close()
    await eventually(lambda: len(node.registry) == 0)


async def test_silent_connections_are_drained_too(programs: Programs) -> None:
    node = await programs.node()
    mute = await RawSocket.open(node.ports["websocket"])
    await programs.stop(node)
    assert await mute.close_code() == 1001
    await mute.close()


async def test_heartbeats_are_answered_during_a_policy_change(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    node = await programs.node(control_plane.ports["link"])
    agents = [await TestAgent.over("websocket", node.ports) for _ in range(50)]
    await asyncio.gather(*(agent.hello() for agent in agents))
    beating = agents.pop()
    answers = 0
    for rate in range(2, 6):
        await apply(control_plane, assignment("all", rate=rate))
        for _ in range(20):
            answer = await beating.heartbeat()
            answers += answer.instance_uid == beating.uid
    last = 0
    while last != 5:
        pushed = await asyncio.gather(*(agent.pipe.pushed() for agent in agents))
        last = int(rate_of(pushed[-1]).split()[-1])
    assert answers == 80
    for agent in (*agents, beating):
        await agent.close()


async def test_bindplane_gateway_handshake_and_agents(programs: Programs) -> None:
    node = await ready_node(programs)
    socket = await RawSocket.open(node.ports["websocket"])
    for number in range(20):
        custom = pb.CustomMessage(
            capability="com.bindplane.opamp-gateway",
            type="connect",
            data=json.dumps({"request_uid": f"r{number}", "remote_address": "x", "headers": {}}).encode(),
        )
        socket.write(frame(b"\0" + pb.AgentToServer(custom_message=custom).SerializeToString()))
        answer = await socket.message()
        assert json.loads(answer.custom_message.data)["request_uid"] == f"r{number}"
        assert json.loads(answer.custom_message.data)["accept"] is True
    agent = TestAgent(WebSocketPipe(socket))
    assert rate_of(await agent.hello()) == b"rate: 1"
    assert sum(node.metrics.bad_messages.values()) == 0
    await socket.close()


async def test_undescribed_agent_is_decided_after_a_timeout(programs: Programs) -> None:
    node = await ready_node(
        programs, assignment("all"), assignment("prod", priority=9, rate=9, selector="{labels: {t: p}}")
    )
    agent = await TestAgent.over("websocket", node.ports)
    assert (await agent.heartbeat()).flags == pb.ServerToAgentFlags_ReportFullState
    node.hub.settle()
    record = node.registry.get(agent.uid)
    assert record is not None
    assert not record.agent_id, "it has ten seconds"
    node.hub._undescribed[0] = (0.0, node.hub._undescribed[0][1])
    node.hub.settle()
    assert rate_of(await agent.pipe.pushed()) == b"rate: 1"
    assert record.agent_id == format_uid(agent.uid)
    answer = await agent.hello(t="p")
    assert rate_of(answer) == b"rate: 9", "what it says later counts"
    await agent.close()


async def test_agent_returns_after_its_record_was_forgotten(programs: Programs) -> None:
    node = await ready_node(programs)
    agent = await TestAgent.over("http", node.ports, "a")
    await agent.hello()
    await agent.report(agent_disconnect=pb.AgentDisconnect())
    node.registry.forget(agent.uid)  # as when its place is needed, or after an hour
    answer = await agent.heartbeat()
    assert answer.flags == pb.ServerToAgentFlags_ReportFullState
    assert rate_of(await agent.hello()) == b"rate: 1"
    record = node.registry.get(agent.uid)
    assert record is not None
    assert (record.agent_id, record.connected) == ("a", True)
    await agent.close()

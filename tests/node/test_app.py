"""Whole nodes: restarts, loss of the control plane, and what agents notice."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest

from relay.control.fleet import views
from relay.errors import StoreError
from relay.ids import sha256
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.testing.certificates import Authority
from relay.testing.clock import MovableClock
from relay.testing.fault_proxy import FaultProxy
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.reports import shown
from tests.wire import RawSocket, TestAgent, WebSocketPipe, describe, hang_up


async def test_agents_do_not_notice_the_loss_of_the_control_plane(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all", rate=3))
    node = await programs.node(control_plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    known = await TestAgent.over("websocket", node.ports, "known")
    answer = await known.hello()
    await known.applied(answer.remote_config.config_hash)
    ports = control_plane.ports
    await programs.stop(control_plane)
    await eventually(lambda: not node.link.connected)
    await known.heartbeat()
    new = await TestAgent.over("websocket", node.ports, "new")
    offered = await new.hello()
    assert b"rate: 3" in offered.remote_config.config.config_map[""].body
    await new.failed(offered.remote_config.config_hash, "my own words")
    assert node.link.silent_s() > 0
    back = await programs.control_plane(link=ports["link"], api=ports["api"])
    await eventually(lambda: len(back.fleet.census.agents) == 2)

    async def has_failed() -> bool:
        return bool((await shown(back.fleet, "new"))["config"]["status"] == "FAILED")

    await eventually(has_failed)
    view = await shown(back.fleet, "new")
    assert view["config"]["error_message"] == "my own words"
    assert view["connected"] is True
    await known.close()
    await new.close()


async def test_graceful_restart_requests_no_full_state(programs: Programs) -> None:
    node = await programs.node()
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await agent.heartbeat()
    ports = node.ports
    await programs.stop(node)
    again = await programs.node(ports=ports)
    agent.pipe = WebSocketPipe(await RawSocket.open(again.ports["websocket"]))
    answer = await agent.heartbeat()
    assert not answer.flags
    assert again.metrics.full_state_requests == 0
    await agent.close()


async def test_crash_requests_full_state_once_per_agent(programs: Programs) -> None:
    node = await programs.node()
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await agent.heartbeat()
    await eventually(lambda: len(node.registry) and not node.registry._dirty)
    await node.store.flush()
    # A crash: only the data on disk is left. The new node gets a copy of the folder as it is now.
    crashed = programs.folder / "node-local-one"
    await asyncio.to_thread(_copy, crashed, programs.folder / "node-local-two")
    again = await programs.node(name="two")
    agent.pipe = WebSocketPipe(await RawSocket.open(again.ports["websocket"]))
    assert (await agent.heartbeat()).flags == 1
    assert not (await agent.hello()).flags
    assert not (await agent.heartbeat()).flags
    assert again.metrics.full_state_requests == 1
    await agent.close()


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


async def test_fleet_is_correct_after_a_cut_link_heals(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    cable = FaultProxy("127.0.0.1", control_plane.ports["link"])
    await cable.start()
    node = await programs.node(cable.port)
    await eventually(lambda: node.policy.accepted)
    agents = [await TestAgent.over("websocket", node.ports, f"a{i}") for i in range(20)]
    for agent in agents[:10]:
        await agent.hello()
    await eventually(lambda: len(control_plane.fleet.census.agents) == 10)
    for _ in range(3):
        cable.cut()
        await eventually(lambda: not node.link.connected)
        for agent in agents[10:]:
            if agent.sequence < 0:
                await agent.hello()
                break
        cable.mend()
        await eventually(lambda: node.link.connected)
    for agent in agents[:5]:
        await agent.close()
    await eventually(
        lambda: (
            sorted((a.agent_id, a.connected) for a in control_plane.fleet.census.agents.values())
            == sorted((r.agent_id, r.connected) for r in node.registry)
        )
    )
    await eventually(lambda: control_plane.fleet.census.nodes["local/one"].shards.sums() == node.registry.shards.sums())
    assert len(control_plane.fleet.census.agents) == 13
    for agent in agents:
        await agent.close()
    await cable.stop()


async def test_agents_of_a_node_without_link_have_unknown_connection(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    node = await programs.node(control_plane.ports["link"])
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await eventually(lambda: control_plane.fleet.census.agents)
    assert (await shown(control_plane.fleet, "a"))["connected"] is True
    await programs.stop(node)
    census = control_plane.fleet.census
    await eventually(lambda: [census.connected(a) for a in census.visible()] == [None])
    (region,) = views.regions(census)
    assert (region["unknown"], region["connected"]) == (1, 0)
    await agent.close()


async def test_agent_that_moves_is_counted_once(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    one = await programs.node(control_plane.ports["link"], name="one")
    two = await programs.node(control_plane.ports["link"], name="two")
    agent = await TestAgent.over("websocket", one.ports, "a")
    await agent.hello()
    await eventually(lambda: control_plane.fleet.census.agents)
    await agent.close()
    moved = await TestAgent.over("websocket", two.ports, "a", uid=agent.uid)
    await moved.hello()
    await eventually(lambda: {a.node for a in control_plane.fleet.census.agents.values()} == {"local/two"})
    await eventually(lambda: len(one.registry) == 0)
    assert len(control_plane.fleet.census.agents) == 1
    await moved.close()


async def test_tls_for_all_three_transports(programs: Programs, tmp_path: Path) -> None:
    import aiohttp
    import grpc.aio

    from relay.pb.relay.v1 import agents_pb2_grpc

    authority = Authority(tmp_path)
    pair = authority.issue("node")
    files = {"enabled": True, "cert_file": str(pair.cert_file), "key_file": str(pair.key_file)}
    node = await programs.node(server={"tls": files})
    trust = ssl.create_default_context(cafile=str(authority.ca_file))
    socket = await RawSocket.open(node.ports["websocket"], ssl=trust)
    agent = TestAgent(WebSocketPipe(socket))
    assert (await agent.hello()).instance_uid == agent.uid
    async with aiohttp.ClientSession() as client:
        url = f"https://127.0.0.1:{node.ports['http']}/health"
        async with client.get(url, ssl=trust) as answer:
            assert answer.status == 200
    credentials = grpc.ssl_channel_credentials(await asyncio.to_thread(authority.ca_file.read_bytes))
    async with grpc.aio.secure_channel(f"localhost:{node.ports['grpc']}", credentials) as channel:
        call = agents_pb2_grpc.AgentStreamStub(channel).Connect()
        await call.write(agent.message())
        await call.read()
        call.cancel()
    await socket.close()


async def test_hold_stops_offers_once_the_policy_is_too_old(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    upstream = {"endpoint": f"127.0.0.1:{control_plane.ports['link']}", "max_staleness": 60, "on_stale": "hold"}
    clock = MovableClock()
    node = await programs.node(control_plane=upstream, clock=clock)
    await eventually(lambda: node.policy.accepted)
    fresh = await TestAgent.over("websocket", node.ports)
    assert (await fresh.hello()).HasField("remote_config")
    await programs.stop(control_plane)
    clock.advance(61)
    assert any("max_staleness" in reason for reason in node.condition().status["degraded"])
    late = await TestAgent.over("websocket", node.ports)
    assert not (await late.hello()).HasField("remote_config")
    await programs.control_plane(link=control_plane.ports["link"])
    assert (await late.pipe.pushed()).HasField("remote_config"), "offered as soon as the policy is fresh again"
    await fresh.close()
    await late.close()


async def test_corrupt_store_is_renamed_and_refilled(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all", rate=8))
    folder = programs.folder / "node-local-one"
    folder.mkdir()
    (folder / "node.sqlite3").write_bytes(b"garbage" * 1000)
    node = await programs.node(control_plane.ports["link"])
    assert list(folder.glob("node.sqlite3.corrupt-*"))
    await eventually(lambda: node.policy.accepted)


async def test_two_nodes_cannot_share_a_folder(programs: Programs) -> None:
    await programs.node()
    with pytest.raises(StoreError):
        await programs.node()


async def test_components_reach_the_control_plane(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    node = await programs.node(control_plane.ports["link"])
    agent = await TestAgent.over("websocket", node.ports, "a")
    message = agent.message(capabilities=0x7807, available_components=pb.AvailableComponents(hash=b"h"))
    describe(message, "a")
    assert (await agent.pipe.exchange(message)).flags & pb.ServerToAgentFlags_ReportAvailableComponents
    listed = pb.AvailableComponents(hash=b"h")
    listed.components["receivers"].sub_component_map["otlp"].SetInParent()
    await agent.report(capabilities=0x7807, available_components=listed)
    digest = sha256(listed.SerializeToString(deterministic=True))
    assert await eventually(lambda: digest in control_plane.fleet.bodies)
    assert await control_plane.fleet.bodies.components(digest) == listed
    await agent.close()


async def test_node_whose_region_changes_starts_afresh(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    folder = str(programs.folder / "moving")
    link = control_plane.ports["link"]
    node = await programs.node(link, node={"region": "eu", "name": "one", "data_dir": folder})
    await eventually(lambda: node.policy.accepted)
    for rate in (2, 3):
        await apply(control_plane, assignment("all", rate=rate))
    await eventually(lambda: node.policy.receiver.version == (1, 3))
    agent = await TestAgent.over("websocket", node.ports, "a")
    await agent.hello()
    await agent.close()
    await programs.stop(node)
    moved = await programs.node(link, node={"region": "us", "name": "one", "data_dir": folder})
    assert not moved.policy.accepted
    assert len(moved.registry) == 0
    await eventually(lambda: moved.policy.receiver.version == (1, 1))
    assert "region_changed" in capsys.readouterr().out


async def test_idle_metrics_connections_do_not_block_others(programs: Programs) -> None:
    node = await programs.node()
    idle = [await asyncio.open_connection("127.0.0.1", node.ports["metrics"]) for _ in range(40)]
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{node.ports['metrics']}/health") as answer,
    ):
        assert answer.status == 200
    assert await asyncio.wait_for(idle[0][0].read(), 10) == b"", "the oldest has given way"
    for _, writer in idle:
        await hang_up(writer)

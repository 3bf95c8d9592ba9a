import random

import pytest

from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.testing.agents import SimulatedAgent, Simulation, fleet, problem_with
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.packages import package_assignment, push

GOOD = b"receivers: {otlp: {}}\nservice: {pipelines: {traces: {receivers: [otlp], exporters: []}}}"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GOOD, None),
        (b"a: [", "cannot parse"),
        (b"- 1", "not a mapping"),
        (b"service: {pipelines: {traces: {receivers: [otlp]}}}", "'otlp' which is not configured"),
        (b"connectors: {c: }\nservice: {pipelines: {t: {receivers: [c]}}}", None),
    ],
)
def test_configs_are_checked_like_a_collector(config: bytes, reason: str | None) -> None:
    found = problem_with(config)
    assert (found is None) if reason is None else reason in str(found)


def test_agent_follows_the_protocol() -> None:
    told: list[str] = []
    (agent,) = fleet(1, chance=random.Random(1), on_event=lambda _, event, detail: told.append(event))
    first = pb.AgentToServer.FromString(agent.full_report())
    assert first.sequence_num == 0
    assert first.agent_description.identifying_attributes
    offer = pb.ServerToAgent(instance_uid=agent.uid, flags=1)
    offer.remote_config.config_hash = b"h"
    offer.remote_config.config.config_map[""].body = GOOD
    full, applying, applied = (pb.AgentToServer.FromString(m) for m in agent.receive(offer.SerializeToString()))
    assert full.HasField("agent_description")
    assert applying.remote_config_status.status == pb.RemoteConfigStatuses_APPLYING
    assert applied.effective_config.config_map.config_map[""].body == GOOD
    assert agent.receive(pb.ServerToAgent(remote_config=offer.remote_config).SerializeToString()) == []
    bad = pb.ServerToAgent()
    bad.remote_config.config_hash = b"bad"
    failed = pb.AgentToServer.FromString(agent.receive(bad.SerializeToString())[-1])
    assert failed.remote_config_status.status == pb.RemoteConfigStatuses_FAILED
    agent.receive(
        pb.ServerToAgent(agent_identification=pb.AgentIdentification(new_instance_uid=b"n" * 16)).SerializeToString()
    )
    assert agent.uid == b"n" * 16
    assert told == ["received", "applied", "received", "failed"]


def test_equal_seeds_give_equal_fleets() -> None:
    one, two = (fleet(4, chance=random.Random(7)) for _ in range(2))
    assert [a.uid for a in one] == [a.uid for a in two]
    assert {a.attributes["role"] for a in one} == {"gateway", "host"}


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_many_agents_connect_apply_and_come_back(programs: Programs, scheme: str) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("all"))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agents: list[SimulatedAgent] = fleet(20, chance=random.Random(1))
    port = node.ports["websocket" if scheme == "ws" else "http"]
    simulation = Simulation(agents, f"{scheme}://127.0.0.1:{port}/v1/opamp", heartbeat_s=0.1)
    simulation.start()
    await eventually(lambda: all(a.applied for a in agents))
    await eventually(lambda: all(a.sequence > 5 for a in agents))
    assert node.metrics.full_state_requests == 0
    if scheme == "ws":  # messages in flight are lost, and may have to be requested
        for socket in list(node.serving.websockets.open):
            socket._abort_slow()
        await eventually(lambda: node.hub.connected == 20 and node.metrics.closed["slow_agent"] >= 20)
    await simulation.stop()


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_packages_are_downloaded_and_reported(programs: Programs, scheme: str) -> None:
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    await push(plane, b"package" * 1000)
    await apply(plane, package_assignment())
    told: list[tuple[str, str]] = []
    agents = fleet(2, chance=random.Random(1), on_event=lambda _, event, detail: told.append((event, detail)))
    url = f"{scheme}://127.0.0.1:{node.ports['websocket']}/v1/opamp"
    simulation = Simulation(agents, url, heartbeat_s=0.1)
    simulation.start()
    await eventually(lambda: told.count(("installed", "otelcol 1")) == 2)
    known = plane.fleet.census.agents
    await eventually(lambda: sum(bool(a.packages and a.packages.status == "APPLIED") for a in known.values()) == 2)
    await simulation.stop()


def test_failed_package_install_is_reported() -> None:
    (agent,) = fleet(1, chance=random.Random(1))
    offer = pb.PackagesAvailable(all_packages_hash=b"set")
    offer.packages["a"].version = "1"
    offer.packages["a"].hash = b"h"
    agent.receive(pb.ServerToAgent(packages_available=offer).SerializeToString())
    assert agent.offer is not None
    assert agent.missing_packages(offer) == ["a"]
    assert pb.AgentToServer.FromString(agent.begin_install(offer)).package_statuses.packages["a"].status == 4
    said = pb.AgentToServer.FromString(agent.finish_install(offer, {"a": "no room"})).package_statuses.packages["a"]
    assert (said.status, said.error_message) == (pb.PackageStatusEnum_InstallFailed, "no room")
    agent.finish_install(offer, {})
    assert agent.missing_packages(offer) == []
    assert pb.AgentToServer.FromString(agent.full_report()).package_statuses.server_provided_all_packages_hash == b"set"

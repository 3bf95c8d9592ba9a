"""Reading reports against the census, without storage: ownership, and what is ignored."""

from __future__ import annotations

import pytest

from relay.control.fleet import intake as module
from relay.control.fleet.bodies import Bodies
from relay.control.fleet.intake import Intake
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2
from tests.control.fleet.test_census import Stand
from tests.control.reports import entry


class Desk(Stand):
    """A census that takes reports at once."""

    def __init__(self) -> None:
        super().__init__()
        bodies = Bodies(None)  # type: ignore[arg-type]  # nothing is read or stored
        self.metrics = ControlPlaneMetrics()
        self.intake = Intake(self.census, bodies, clock=self.clock, metrics=self.metrics)
        self.sequence = 0

    def report(self, node: str, *agents: link_pb2.AgentEntry, region: str = "eu", **more: object) -> link_pb2.ReportAck:
        self.sequence += 1
        held = self.census.node(region, node)
        held.reporting, held.trusted, held.heard_at = 1, "all", self.clock.monotonic()
        report = link_pb2.StatusReport(sequence=self.sequence, agents=agents, **more)  # type: ignore[arg-type]
        ack = self.intake.take(self.intake.read(held, report))
        ack.released.extend(held.to_release)
        held.to_release = set()
        return ack


def test_report_has_no_effect_until_taken() -> None:
    desk = Desk()
    reading = desk.intake.read(desk.census.node("eu", "one"), link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    assert (reading.changes, len(desk.census)) == (True, 0)
    desk.intake.take(reading)
    assert len(desk.census) == 1
    quiet = desk.intake.read(desk.census.node("eu", "one"), link_pb2.StatusReport(sequence=2))
    assert not quiet.changes


def test_last_entry_for_an_agent_wins() -> None:
    desk = Desk()
    desk.report("one", entry("a", healthy=True), entry("a", healthy=False))
    assert [agent.healthy for agent in desk.census.visible()] == [False]


def test_previous_node_is_told_once_to_release_an_agent() -> None:
    desk = Desk()
    desk.report("one", entry("a", started=1))
    desk.report("two", entry("a", started=2))
    uid = entry("a").instance_uid
    assert list(desk.report("one").released) == [uid]
    assert list(desk.report("one").released) == []
    assert list(desk.report("one", entry("a", started=1)).released) == [], "it was told of this pair"
    assert desk.census.agents[uid].node == "eu/two"
    assert desk.census.nodes["eu/one"].shards.sums() != [0] * 256, "it goes on counting it"


def test_released_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_RELEASED", 2)
    desk = Desk()
    for number in range(5):
        desk.report("one", entry(f"a{number}", started=1))
        desk.report("two", entry(f"a{number}", started=2))
    assert len(desk.intake._released) <= 2


def test_sums_of_another_shard_count_are_ignored() -> None:
    desk = Desk()
    ack = desk.report("one", entry("a"), shards=[1, 2, 3])
    assert (list(ack.list_shards), desk.census.nodes["eu/one"].verified) == ([], True)


def test_agent_is_reread_when_trusted_attributes_change() -> None:
    desk = Desk()
    node = desk.census.node("eu", "one")
    reading = desk.intake.read(node, link_pb2.StatusReport(sequence=1, agents=[entry("a", tier="prod")]))
    node.trusted = ("tier",)
    desk.intake.take(reading)
    (agent,) = desk.census.visible()
    assert agent.facts.labels == {"tier": "prod", "region": "eu"}


def test_forgotten_agent_stays_known_and_disconnected() -> None:
    desk = Desk()
    desk.report("one", entry("a"))
    uid = entry("a").instance_uid
    desk.report("one", forgotten=[uid])
    assert (desk.census.agents[uid].forgotten, desk.census.agents[uid].connected) == (True, False)
    desk.report("one", removed=[uid])
    assert len(desk.census) == 0


def holder(desk: Desk, name: str) -> str:
    (agent,) = desk.census.by_id(name)
    return agent.node


def test_attack_agent_that_is_live_in_another_region_is_claimed() -> None:
    desk = Desk()
    desk.report("one", entry("a", started=1))
    for _ in range(2):
        ack = desk.report("evil", entry("a", started=10**12 + 10**9), region="us")
        assert list(ack.released) == []
    assert holder(desk, "a") == "eu/one"
    evil = desk.census.node("us", "evil")
    assert (set(evil.disputed), desk.metrics.claims_disputed) == (set(evil.aside), 1)
    assert evil.agents == set()


def test_agent_that_really_moved_is_asked_for_again() -> None:
    desk = Desk()
    agent = entry("a", started=1)
    desk.report("one", agent)
    desk.report("two", entry("a", started=2), region="us")
    assert list(desk.report("two", region="us").want_agents) == []
    desk.report("one", entry("a", started=1, connected=False))
    assert list(desk.report("two", region="us").want_agents) == [agent.instance_uid]
    desk.report("two", entry("a", started=2), region="us")
    assert holder(desk, "a") == "us/two"
    assert desk.census.node("us", "two").disputed == {}


def test_dispute_ends_with_the_claim() -> None:
    desk = Desk()
    agent = entry("a", started=1)
    desk.report("one", agent)
    desk.report("two", entry("a", started=2), region="us")
    desk.report("two", region="us", removed=[agent.instance_uid])
    assert list(desk.report("two", region="us").want_agents) == []
    assert desk.census.node("us", "two").disputed == {}


def test_agent_of_a_node_that_is_gone_moves() -> None:
    desk = Desk()
    agent = entry("a", started=1)
    desk.report("one", agent)
    desk.report("two", entry("a", started=2), region="us")
    one = desk.census.node("eu", "one")
    one.reporting = 0
    assert list(desk.report("two", region="us").want_agents) == [], "its node may be back in a moment"
    desk.clock.advance(121)
    assert list(desk.report("two", region="us").want_agents) == [agent.instance_uid]


def test_attack_agents_are_claimed_while_their_node_reconnects() -> None:
    desk = Desk()
    desk.report("one", entry("a", started=1000))
    desk.census.node("eu", "one").reporting = 0
    desk.report("evil", entry("a", started=2000), region="us")
    assert holder(desk, "a") == "eu/one"


def test_attack_agent_that_was_claimed_while_its_node_was_away_comes_back() -> None:
    desk = Desk()
    desk.report("one", entry("a", started=1000))
    desk.census.node("eu", "one").reporting = 0
    desk.clock.advance(121)
    ack = desk.report("evil", entry("a", started=2000), region="us")
    assert holder(desk, "a") == "us/evil"
    ack = desk.report("one", entry("a", started=1000))
    assert holder(desk, "a") == "eu/one", "the older of two sessions that last"
    assert list(ack.released) == [], "nobody closes its connection"


def test_attack_agent_under_a_made_up_subject() -> None:
    desk = Desk()
    desk.report("evil", entry("a", started=1), region="us")
    (claimed,) = desk.census.by_id("a")
    claimed.owner = 7
    for _ in range(3):
        assert list(desk.report("one", entry("a", started=1)).released) == []
    assert desk.census.node("eu", "one").disputed

"""The census alone: no reports, no database."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest

from relay.control.fleet import profiles
from relay.control.fleet.agents import Agent, Reader
from relay.control.fleet.census import Cell, Census
from relay.policy.model import Selector
from relay.policy.selector import Matcher
from relay.testing.clock import ManualClock
from tests.fleet.agents import record


class Stand:
    """A census, and a way to add agents."""

    def __init__(self) -> None:
        self.clock = ManualClock(10**12)
        self.census = Census(clock=self.clock)
        self.reader = Reader()

    def put(self, name: str, *, uid: bytes = b"", node: str = "one", region: str = "eu", **more: Any) -> Agent:
        started, connected = more.pop("started", 1), more.pop("connected", True)
        made = record(name, **more)
        made.instance_uid = uid or made.instance_uid  # type: ignore[assignment]
        made.session_started_ms, made.connected = started, connected
        held = self.census.node(region, node)
        held.trusted = "all"
        agent = self.reader.read(made.instance_uid, made.state(), held)
        self.census.put(agent)
        return agent

    def sorted(self, *selectors: Selector) -> list[list[str]]:
        pieces = [
            sorted(agent.agent_id for agent in agents) for _, _, agents in self.census.partition(Matcher(selectors))
        ]
        assert sorted(name for piece in pieces for name in piece) == sorted(a.agent_id for a in self.census.visible())
        return sorted(filter(None, pieces))


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_agent_is_counted_once(stand: Stand) -> None:
    stand.put("a")
    stand.put("a", healthy=False)
    stand.put("a", healthy=False, node="two")
    census = stand.census
    assert (len(census), census.cells.total(), [a.node for a in census.visible()]) == (1, 1, ["eu/two"])
    assert (census.nodes["eu/one"].agents, len(census.nodes["eu/two"].agents)) == (set(), 1)
    assert not any(census.nodes["eu/one"].shards.sums())
    census.drop(next(iter(census.agents)))
    assert (len(census), dict(census.cells), census.by_id("a")) == (0, {}, ())
    assert census.drop(b"x" * 16) is None


def test_namesakes_show_live_agents_or_the_newest(stand: Stand) -> None:
    def shown() -> list[bytes]:
        assert stand.census.cells.total() == len(list(stand.census.visible()))
        return sorted(agent.uid[:1] for agent in stand.census.visible())

    stand.put("a", uid=b"1" * 16, started=1, connected=False)
    stand.put("a", uid=b"2" * 16, started=2, connected=False)
    assert shown() == [b"2"]
    stand.put("a", uid=b"1" * 16, started=3)
    assert shown() == [b"1"]
    stand.put("a", uid=b"2" * 16, started=4)
    assert shown() == [b"1", b"2"]
    stand.census.drop(b"1" * 16)
    assert shown() == [b"2"]
    stand.put("a", uid=b"2" * 16, started=4, connected=False)
    assert shown() == [b"2"]
    assert [agent.uid for agent in stand.census.by_id("a")] == [b"2" * 16]


def test_cells_equal_a_recount_after_any_changes(stand: Stand) -> None:
    chance = random.Random(7)
    for _ in range(2_000):
        uid = bytes([chance.randrange(12)]) * 16
        if chance.random() < 0.2:
            stand.census.drop(uid)
        else:
            more: Any = {"connected": chance.random() < 0.5, "healthy": chance.choice([True, False, None])}
            name, node = f"n{chance.randrange(4)}", chance.choice(["one", "two"])
            stand.put(name, uid=uid, node=node, started=chance.randrange(5), **more)
    census = stand.census
    assert census.cells == Counter(Cell.of(agent) for agent in census.visible())
    assert sum(len(node.agents) for node in census.nodes.values()) == len(census)
    for name in {agent.agent_id for agent in census.agents.values()}:
        mine = [agent for agent in census.agents.values() if agent.agent_id == name]
        assert set(census.by_id(name)) == set(mine)
        live = [a for a in mine if a.connected] or [max(mine, key=lambda a: (a.session_started_ms, a.uid))]
        assert {a.uid for a in mine if not a.hidden} == {a.uid for a in live}


def test_agents_that_selectors_cannot_tell_apart_are_grouped(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_MAX_SHARED", 3)
    for number in range(8):
        stand.put(f"a{number}", tier="prod" if number % 2 else "dev")
    prod = Selector(labels={"tier": "prod"})
    # The first three came before it was clear that every agent has its own name.
    assert stand.sorted(prod) == [["a0"], ["a1"], ["a2"], ["a3", "a5", "a7"], ["a4", "a6"]]
    assert ["a4"] in stand.sorted(prod, Selector(agent_ids=["a4"]))
    assert ["a6"] in stand.sorted(Selector(labels={"service.instance.id": "a6"}))
    matcher = Matcher([Selector(labels={"service.instance.id": "a6"})])
    assert set(stand.census.vectors(matcher)) == {matcher.vector(a.facts) for a in stand.census.visible()}


def test_agents_of_two_regions_are_never_grouped(stand: Stand) -> None:
    stand.put("a")
    stand.put("b", region="us")
    assert stand.sorted(Selector()) == [["a"], ["b"]]
    assert stand.sorted(Selector(agent_ids=["a", "b"])) == [["a"], ["b"]]


def test_forgetting_a_node_drops_its_agents(stand: Stand) -> None:
    stand.put("a")
    stand.put("b", node="two")
    assert stand.census.live_regions() == {"eu"}
    stand.census.forget_node(stand.census.nodes["eu/one"])
    assert ([a.agent_id for a in stand.census.visible()], set(stand.census.nodes)) == (["b"], {"eu/two"})


def test_updating_one_of_many_namesakes_does_not_scan_all(stand: Stand) -> None:
    for number in range(300):
        stand.put("clone", uid=number.to_bytes(16, "big"), started=number)
    namesakes = stand.census.duplicates["clone"]
    with patch.object(namesakes, "_to_flip", side_effect=AssertionError("all of them were looked at")):
        stand.put("clone", uid=(7).to_bytes(16, "big"), healthy=False)
        stand.census.drop((8).to_bytes(16, "big"))
    assert len(list(stand.census.visible())) == 299
    for number in range(300):
        stand.put("clone", uid=number.to_bytes(16, "big"), started=number, connected=False)
    assert [agent.session_started_ms for agent in stand.census.visible()] == [299]

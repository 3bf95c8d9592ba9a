from __future__ import annotations

import pytest

from relay.control.fleet import agents as module
from relay.control.fleet.agents import Agent, Reader
from relay.control.fleet.nodes import NodeState
from relay.opamp.offer import OfferedSlot
from relay.opamp.record import Credential, Record
from relay.policy.published import CONFIG, PACKAGES
from tests.fleet.agents import record

NODE = NodeState("eu", "one", trusted=("tier",))


def offered(name: str, *, healthy: bool | None = True, at_ms: int = 5) -> Record:
    made = record(name)
    made.offer_config(b"h" * 32, (OfferedSlot("", "a", b"c" * 32),))
    made.config.baseline = (healthy,)
    made.config.stamp(at_ms)
    return made


def read(reader: Reader, made: Record) -> Agent:
    return reader.read(made.instance_uid, made.state(), NODE)


def test_state_is_parsed() -> None:
    agent = read(Reader(), record("a", healthy=False, tier="prod"))
    assert (agent.agent_id, agent.node, agent.healthy, agent.connected) == ("a", "eu/one", False, True)
    assert agent.accepts(CONFIG)
    assert not agent.accepts(PACKAGES)
    assert agent.reports(CONFIG)
    assert not agent.reports(PACKAGES)
    assert (agent.offering(PACKAGES).hash, agent.offered_ms(PACKAGES)) == (b"", 0)
    assert agent.facts.labels == {"tier": "prod", "region": "eu"}
    assert agent.facts.attributes == {"service.instance.id": "a", "tier": "prod"}


@pytest.mark.parametrize(
    "field", ["agent_description", "health", "remote_config_status", "custom_capabilities", "package_statuses"]
)
def test_unreadable_state_is_refused(field: str) -> None:
    made = record("a")
    setattr(made, field, b"\x0a\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        read(Reader(), made)
    with pytest.raises(ValueError, match="belongs to another agent"):
        Reader().read(b"x" * 16, record("a").state(), NODE)


def test_equal_offerings_are_shared_with_separate_dates() -> None:
    reader = Reader()
    one, two = read(reader, offered("a", at_ms=5)), read(reader, offered("b", at_ms=7))
    assert one.config is two.config
    assert (one.offered_ms(CONFIG), two.offered_ms(CONFIG), one.config.offered_at_ms) == (5, 7, 0)
    assert one.config.slots == (OfferedSlot("", "a", b"c" * 32),)
    assert read(reader, record("c")).config is not one.config


def test_unknown_baseline_health_is_taken_from_the_previous_node() -> None:
    reader = Reader()
    known, unknown, other = (read(reader, offered(n, healthy=h)) for n, h in (("a", False), ("a", None), ("b", None)))
    reader.keep_baseline(unknown, known)
    assert unknown.config.baseline == (False,)
    assert other.config.baseline == (None,), "another agent was offered the same, and nobody knows of it"
    reader.keep_baseline(known, other)
    assert known.config.baseline == (False,)
    reader.keep_baseline(other, other)
    assert other.config.baseline == (None,)


def test_trusted_attributes_of_the_node_become_labels() -> None:
    reader, node = Reader(), NodeState("eu", "one")
    made = record("a", tier="prod")
    agent = reader.read(made.instance_uid, made.state(), node)
    assert agent.facts.labels == {"region": "eu"}
    node.trusted = "all"
    reader.update_trust(agent, node)
    assert agent.facts.labels == {"tier": "prod", "service.instance.id": "a", "region": "eu"}


def test_shared_offerings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SHARED", 2)
    reader = Reader()
    for number in range(5):
        made = record(f"a{number}")
        made.offer_config(bytes([number]) * 32, (OfferedSlot("", "a", bytes([number]) * 32),))
        assert read(reader, made).config.hash == bytes([number]) * 32
    assert len(reader._offerings) <= 2


@pytest.mark.parametrize(
    "labels", ["[1]", "1", "{", "[" * 100_000, '{"region":"us"}', '{"a":{"b":1}}', '{"a":NaN}', "null"]
)
def test_attack_labels_of_a_hostile_node(labels: str) -> None:
    made = record("a")
    made.adopt(Credential("s", "a", "jwt", "", labels, 0))
    with pytest.raises(ValueError, match=r"."):
        read(Reader(), made)


def test_labels_of_a_credential() -> None:
    made = record("a")
    made.adopt(Credential("s", "a", "jwt", "", '{"team":"a"}', 0))
    assert read(Reader(), made).facts.labels["team"] == "a"

from __future__ import annotations

from typing import Any

import pytest

from relay.control.fleet import profiles as module
from relay.control.fleet.profiles import Own, Profile, Profiles
from relay.fleet.facts import Proof, Trusted, facts_of, labels_of
from relay.opamp import identity
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.selector import Facts


def described(attributes: dict[str, Any], **identifying: Any) -> bytes:
    message = pb.AgentDescription()
    for where, some in (
        (message.non_identifying_attributes, attributes),
        (message.identifying_attributes, identifying),
    ):
        for key, value in some.items():
            kind = {str: "string", bool: "bool", int: "int", float: "double"}.get(type(value))
            added = where.add(key=key).value
            if kind is None:
                for one in value:
                    added.array_value.values.add(int_value=one)
            else:
                setattr(added, f"{kind}_value", value)
    return message.SerializeToString()


def split(profiles: Profiles, attributes: dict[str, Any], region: str, trusted: Trusted) -> tuple[Profile, Own]:
    return profiles.split(described(attributes), region, trusted)


def facts(profiles: Profiles, attributes: dict[str, Any], trusted: Trusted = ("tier",)) -> Facts:
    profile, own = split(profiles, attributes, "eu", trusted)
    return profile.facts("a", own)


def test_equal_descriptions_share_a_profile() -> None:
    profiles = Profiles()
    one, _ = split(profiles, {"os": "linux", "tier": "prod"}, "eu", ("tier",))
    assert split(profiles, {"os": "linux", "tier": "prod"}, "eu", ("tier",)) == (one, ())
    assert split(profiles, {"os": "linux", "tier": "prod"}, "us", ("tier",))[0] is not one
    assert split(profiles, {"os": "linux", "tier": "prod"}, "eu", "all")[0] is not one
    assert split(profiles, {"os": "linux", "tier": "dev"}, "eu", ("tier",))[0] is not one


def test_values_of_different_types_are_distinct() -> None:
    profiles = Profiles()
    made = [split(profiles, {"x": value}, "eu", "all")[0] for value in (1, True, 1.0, "1")]
    assert [profile.attributes["x"] for profile in made] == [1, True, 1.0, "1"]
    assert [type(profile.attributes["x"]) for profile in made] == [int, bool, float, str]


@pytest.mark.parametrize("trusted", ["all", ("tier", "host"), ("region",), ()])
def test_sharing_loses_nothing(trusted: Trusted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SHARED", 2)
    profiles = Profiles()
    for number in range(6):
        said = {"host": f"h{number}", "tier": "prod", "region": f"r{number}", "list": [1, number], "n": number % 2}
        seen = facts(profiles, said, trusted)
        assert (seen.attributes, seen.labels) == (said, labels_of(said, "eu", trusted))


def test_key_with_many_values_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SHARED", 3)
    profiles = Profiles()
    made = [split(profiles, {"os": "linux", "host": f"h{n}"}, "eu", ("host",)) for n in range(6)]
    (last, own), (before, _) = made[-1], made[-2]
    assert (last, last.own, own, last.own_labels) == (before, ("host",), ("h5",), frozenset({"host"}))
    assert not last.tells({"os", "host"})
    assert last.tells({"os"})
    assert (last.value("host", own), last.value("os", own), last.value("x", own)) == ("h5", "linux", None)
    assert last.shared().attributes == {"os": "linux"}


@pytest.mark.parametrize("most", [0, 1, 100])
def test_identifying_attribute_wins(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SHARED", most)
    profiles = Profiles()
    for description in (described({"k": 1}, k=2), described({"k": 2}, k=1), described({"k": [1]}, k=2)):
        profile, own = profiles.split(description, "eu", "all")
        assert profile.facts("a", own).attributes == identity.attributes(description)


def test_profile_with_other_trusted_attributes() -> None:
    profiles = Profiles()
    profile, own = split(profiles, {"os": "linux", "list": [1]}, "eu", ())
    trusting = profiles.trusting(profile, "all")
    assert trusting.facts("a", own).labels == {"os": "linux", "region": "eu"}
    assert trusting is split(profiles, {"os": "linux", "list": [2]}, "eu", "all")[0]


def test_invented_keys_and_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_KEYS", 2)
    monkeypatch.setattr(module, "_MAX_PROFILES", 3)
    profiles = Profiles()
    for number in range(10):
        said = {f"k{number}": "v"}
        assert facts(profiles, said, "all").attributes == said
    assert split(profiles, {"k9": "v"}, "eu", "all")[0].own == ("k9",)
    assert len(profiles._profiles) <= 3


def test_labels_follow_the_winning_attribute() -> None:
    profiles = Profiles()
    for identifying in ("dev", [1], ""):
        description = described({"tier": "prod"}, tier=identifying)
        profile, own = profiles.split(description, "eu", "all")
        seen = profile.facts("a", own)
        assert seen == facts_of(description, "a", "eu", "all")


def test_long_values_and_excess_attributes_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = Profiles()
    assert split(profiles, {"text": "x" * 1_000}, "eu", ())[0].own == ("text",)
    monkeypatch.setattr(module, "_MAX_ATTRIBUTES", 2)
    for number in range(4):
        profile, _ = split(profiles, {f"k{number}": "v"}, "eu", ())
    assert profile.own == ("k3",)


def test_attribute_order_does_not_matter() -> None:
    profiles = Profiles()
    said = {"a": "1", "b": [1], "c": "2", "d": [2], "e": "3"}
    one = split(profiles, said, "eu", "all")
    assert split(profiles, dict(reversed(said.items())), "eu", "all") == one


def test_labels_of_a_credential_are_shared_and_win() -> None:
    profiles = Profiles()
    proof = Proof(is_required=True, labels='{"host.name":"given","team":"a"}')
    profile, own = profiles.split(described({"host.name": "h", "tier": "x"}), "eu", "all", proof)
    facts = profile.facts("a", own)
    assert (facts.labels["host.name"], facts.labels["team"], facts.labels["tier"]) == ("given", "a", "x")
    assert facts.id_counts
    assert not profiles.trusting(profile, ("tier",)).facts("a", own).id_counts
    assert profiles.split(described({"host.name": "h", "tier": "x"}), "eu", "all")[0] is not profile

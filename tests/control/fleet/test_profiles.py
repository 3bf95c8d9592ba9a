from __future__ import annotations

from typing import Any

import pytest

from relay.control.fleet import profiles as module
from relay.control.fleet.nodes import Trusted
from relay.control.fleet.profiles import Profiles
from relay.fleet.facts import labels_of
from relay.policy.selector import Facts


def facts(profiles: Profiles, attributes: dict[str, Any], trusted: Trusted = ("tier",)) -> Facts:
    profile, own = profiles.split(attributes, "eu", trusted)
    return profile.facts("a", own)


def test_agents_of_one_description_share_it() -> None:
    profiles = Profiles()
    one, _ = profiles.split({"os": "linux", "tier": "prod"}, "eu", ("tier",))
    assert profiles.split({"os": "linux", "tier": "prod"}, "eu", ("tier",)) == (one, ())
    assert profiles.split({"os": "linux", "tier": "prod"}, "us", ("tier",))[0] is not one
    assert profiles.split({"os": "linux", "tier": "prod"}, "eu", "all")[0] is not one
    assert profiles.split({"os": "linux", "tier": "dev"}, "eu", ("tier",))[0] is not one


def test_values_that_python_takes_for_equal_are_not() -> None:
    profiles = Profiles()
    made = [profiles.split({"x": value}, "eu", "all")[0] for value in (1, True, 1.0, "1")]
    assert [profile.attributes["x"] for profile in made] == [1, True, 1.0, "1"]
    assert [type(profile.attributes["x"]) for profile in made] == [int, bool, float, str]


@pytest.mark.parametrize("trusted", ["all", ("tier", "host"), ("region",), ()])
def test_nothing_is_lost_whatever_is_shared(trusted: Trusted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SHARED", 2)
    profiles = Profiles()
    for number in range(6):
        said = {"host": f"h{number}", "tier": "prod", "region": f"r{number}", "list": [1, number], "n": number % 2}
        seen = facts(profiles, said, trusted)
        assert (seen.attributes, seen.labels) == (said, labels_of(said, "eu", trusted))


def test_a_key_of_many_values_is_each_agent_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SHARED", 3)
    profiles = Profiles()
    made = [profiles.split({"os": "linux", "host": f"h{n}"}, "eu", ("host",)) for n in range(6)]
    (last, own), (before, _) = made[-1], made[-2]
    assert (last, last.own, own, last.own_labels) == (before, ("host",), ("h5",), frozenset({"host"}))
    assert not last.tells({"os", "host"})
    assert last.tells({"os"})
    assert (last.value("host", own), last.value("os", own), last.value("x", own)) == ("h5", "linux", None)
    assert last.shared().attributes == {"os": "linux"}


def test_who_makes_up_keys_and_values_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KEYS", 2)
    monkeypatch.setattr(module, "_MOST_PROFILES", 3)
    profiles = Profiles()
    for number in range(10):
        said = {f"k{number}": "v"}
        assert facts(profiles, said, "all").attributes == said
    assert profiles.split({"k9": "v"}, "eu", "all")[0].own == ("k9",)
    assert len(profiles._made) <= 3

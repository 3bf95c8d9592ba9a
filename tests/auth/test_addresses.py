from __future__ import annotations

import pytest

from relay.auth.addresses import AddressRules, is_own_host


def test_no_rules_admit_all() -> None:
    assert AddressRules().admits("anything")


@pytest.mark.parametrize(
    ("ip", "admitted"),
    [
        ("10.1.2.3", True),
        ("10.9.0.1", False),
        ("192.0.2.1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.9.0.1", False),
        ("2001:db8::1", True),
        ("fe80::1%eth0", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_deny_wins_over_allow(ip: str, admitted: bool) -> None:
    assert AddressRules(["10.0.0.0/8", "2001:db8::/32"], ["10.9.0.0/16"]).admits(ip) is admitted


def test_deny_alone() -> None:
    rules = AddressRules(deny=["192.0.2.1"])
    assert not rules.admits("192.0.2.1")
    assert rules.admits("192.0.2.2")
    assert not rules.admits("unknown"), "it may be the one that is denied"


def test_mapped_networks() -> None:
    assert AddressRules(["::ffff:10.0.0.0/104"]).admits("10.1.2.3")
    assert AddressRules(["::ffff:0:0/80"]).admits("::ffff:1") is True


def test_bad_network() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/33"):
        AddressRules(["10.0.0.0/33"])


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("LocalHost:4320", True),
        ("127.0.0.1:1", True),
        ("[::1]:4320", True),
        ("[::1]", True),
        ("", True),
        ("evil.example", False),
        ("localhost.evil.example:4320", False),
        ("127.0.0.1.evil.example", False),
        ("[::1].evil.example", False),
        ("[::2]:4320", False),
        ("[", False),
    ],
)
def test_attack_dns_rebinding(host: str, is_own: bool) -> None:
    assert is_own_host(host) is is_own

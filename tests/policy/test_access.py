from __future__ import annotations

from typing import Any

import pytest

from relay.documents import canonical_json
from relay.policy.access import (
    READERS,
    REVOCATIONS,
    Access,
    AgentKey,
    Reader,
    is_access,
    keys_resource,
    read_access,
    readers_resource,
    revocations_resource,
)

A1, A2, B1 = (
    AgentKey(bytes.fromhex(prefix) + bytes(30), subject, single, {"team": "a"}, 7)
    for prefix, subject, single in (("aa01", "agent-1", True), ("aa02", "web", False), ("bb01", "other", True))
)
TOKEN = Reader(owner="ann", scope={"team": "a"}, expires_ms=9)


def resources() -> dict[str, bytes]:
    return dict(
        [
            keys_resource([A1, A2]),
            keys_resource([B1]),
            revocations_resource([("subject", "web"), ("jti", "t-1")]),
            readers_resource({"cc" * 32: TOKEN}),
            ("ConfigTemplate/a@1", b"not ours"),
        ]
    )


def test_what_is_published_is_read() -> None:
    access, rejected = read_access(resources(), Access())
    assert rejected == {}
    assert [access.key(key.digest[:5]) for key in (A1, A2, B1)] == [A1, A2, B1]
    assert access.key(b"\xaa\x01\x00\x00\x01") is None
    assert access.key(b"\xcc\x00\x00\x00\x00") is None
    assert access.revoked == {("subject", "web"), ("jti", "t-1")}
    assert access.readers == {b"\xcc" * 32: TOKEN}


def test_unchanged_keys_are_not_read_again() -> None:
    first, _ = read_access(resources(), Access())
    second, _ = read_access({**resources(), **dict([keys_resource([A1])])}, first)
    assert second.shards["bb"] is first.shards["bb"]
    assert second.key(A2.digest[:5]) is None


@pytest.mark.parametrize("name", ["ApiKeys/aa", REVOCATIONS, READERS])
@pytest.mark.parametrize("payload", [b"", b"[]", b'{"keys": {"x": {}}}'])
def test_what_cannot_be_read_stays_as_it_was(name: str, payload: bytes) -> None:
    before, _ = read_access(resources(), Access())
    after, rejected = read_access({**resources(), name: payload}, before)
    assert rejected.keys() == {name}
    assert (after.shards.keys(), after.revoked, after.readers) == (before.shards.keys(), before.revoked, before.readers)
    assert after.key(A1.digest[:5]) == A1


def test_what_was_never_readable_is_not_there() -> None:
    access, rejected = read_access({"ApiKeys/aa": b"x"}, Access())
    assert not access.shards
    assert rejected.keys() == {"ApiKeys/aa"}


def test_key_counts_only_where_it_belongs() -> None:
    _, payload = keys_resource([B1])
    access, _ = read_access({"ApiKeys/aa": payload}, Access())
    assert access.key(B1.digest[:5]) is None


@pytest.mark.parametrize("change", [{"subject": ""}, {"labels": {"a": [1]}}, {"single": "yes"}, {"extra": 1}])
def test_odd_keys_are_rejected(change: dict[str, Any]) -> None:
    key = {"subject": "a", "single": True, "labels": {}, "refused_from_ms": 1, **change}
    _, rejected = read_access({"ApiKeys/aa": canonical_json({"keys": {"aa" * 32: key}})}, Access())
    assert rejected.keys() == {"ApiKeys/aa"}


def test_what_says_who_may_connect() -> None:
    for name in ("ApiKeys/0f", "Revocations/agents", "Access/readers"):
        assert is_access(name)
    for name in ("ApiKeysX/0f", "Keys/packages", "KeySet/trust", "Revocations/other"):
        assert not is_access(name)

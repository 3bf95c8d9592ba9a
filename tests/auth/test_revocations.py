from __future__ import annotations

import json

import pytest

from relay.auth.principal import Method, Principal
from relay.auth.revocations import Kind, Revocations, read_revocations

TOKEN = Principal("s", Method.JWT, "t-1", "a")
KEY = Principal("web", Method.API_KEY, "key-1")
CERTIFICATE = Principal("a", Method.MTLS, "abc", "a")


def test_nothing_is_revoked() -> None:
    assert not Revocations().revokes(TOKEN)


@pytest.mark.parametrize(
    ("kind", "value", "revoked"),
    [
        (Kind.SUBJECT, "s", [TOKEN]),
        (Kind.SUBJECT, "web", [KEY]),
        (Kind.AGENT, "a", [TOKEN, CERTIFICATE]),
        (Kind.JTI, "t-1", [TOKEN]),
        (Kind.KEY, "key-1", [KEY]),
        (Kind.CERTIFICATE, "abc", [CERTIFICATE]),
        (Kind.JTI, "abc", []),
        (Kind.AGENT, "web", []),
    ],
)
def test_revoked(kind: Kind, value: str, revoked: list[Principal]) -> None:
    revocations = Revocations([(kind, value)])
    assert [p for p in (TOKEN, KEY, CERTIFICATE) if revocations.revokes(p)] == revoked


def test_read_revocations() -> None:
    entries = [
        {"id": "r-1", "kind": "jti", "value": "t-1", "reason": "stolen", "by": "ops", "at": "2026-01-01T00:00:00Z"},
        {"kind": "node", "value": "eu/n1"},
        {"kind": "token", "value": "token-1"},
        {"kind": "key", "value": "key-1"},
    ]
    revocations = read_revocations(json.dumps(entries).encode())
    assert [p for p in (TOKEN, KEY, CERTIFICATE) if revocations.revokes(p)] == [TOKEN, KEY]
    assert not read_revocations(b"[]").revokes(TOKEN)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "not a list"),
        (b"[7]", "entry 0: must be an object with a kind and a value"),
        (b'[{"kind": "jti"}]', "entry 0: must be"),
        (b'[{"kind": "jti", "value": ""}]', "entry 0: must be"),
        (b'[{"kind": ["jti"], "value": "x"}]', "entry 0: must be"),
        (b'[{"kind": "jit", "value": "x"}]', "entry 0: jit is not one of subject, agent, jti"),
        (json.dumps([{"kind": "jti", "value": "x"}] * 10_001).encode(), "10001 revocations are more than the maximum"),
    ],
)
def test_bad_revocations(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_revocations(content)


def test_those_of_either() -> None:
    both = Revocations([(Kind.JTI, "a")]) | Revocations([(Kind.SUBJECT, "b")])
    assert both.revokes(Principal("x", Method.JWT, "a"))
    assert both.revokes(Principal("b", Method.JWT, "y"))
    assert not both.revokes(Principal("x", Method.JWT, "y"))

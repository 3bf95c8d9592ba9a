from __future__ import annotations

import pytest

from relay.auth.principal import Method, Principal
from relay.auth.revocations import Kind, Revocations

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

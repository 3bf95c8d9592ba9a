from __future__ import annotations

import json

from relay.auth.revocations import Kind
from relay.control.access.revocations import Revocation

ONE = Revocation(Kind.SUBJECT, "web", "stolen", "ann", 1)


def test_what_is_revoked_twice_is_revoked_once() -> None:
    assert ONE.id == Revocation(Kind.SUBJECT, "web", "again", "bob", 2).id
    assert ONE.id != Revocation(Kind.AGENT, "web", "stolen", "ann", 1).id


def test_plain_values() -> None:
    assert Revocation.from_plain(json.loads(json.dumps(ONE.plain()))) == ONE

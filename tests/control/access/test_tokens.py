from __future__ import annotations

import json

from relay.control.access.roles import Grant, Role
from relay.control.access.tokens import Token

TOKEN = Token(b"\xaa" * 32, "ci", "ann", Grant(Role.AUTHOR, {"team": "a"}), True, 1, "ann", 9)


def test_plain_values() -> None:
    assert TOKEN.id == "token-aaaaaaaaaa"
    assert Token.from_plain(json.loads(json.dumps(TOKEN.plain()))) == TOKEN

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from relay.auth.join_tokens import PREFIX, JoinToken, read_join_token

TOKEN = JoinToken("join-1", "secret", "a" * 64, "cp:4331", "cp:4330")


def encoded(**changes: Any) -> str:
    content = {"v": 1, **TOKEN._asdict(), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    return PREFIX + base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def test_round_trip() -> None:
    assert read_join_token(TOKEN.text()) == TOKEN
    assert read_join_token(f" {TOKEN.text()}\n") == TOKEN
    assert read_join_token(encoded()) == TOKEN


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a join token"),
        ("opamp_abc", "not a join token"),
        (TOKEN.text()[:-5], "not a join token, or not a whole one"),
        (PREFIX + "é", "not a join token, or not a whole one"),
        (PREFIX + "a" * 5000, "not a join token"),
        (PREFIX + base64.urlsafe_b64encode(b"[]").decode(), "not a join token, or not a whole one"),
        (encoded(v=2), "of a later version"),
        (encoded(v=None), "not a whole one"),
        (encoded(secret=None), "not a whole one"),
        (encoded(secret=""), "not a whole one"),
        (encoded(join=7), "not a whole one"),
        (encoded(root="x"), "not a whole one"),
        (encoded(more=1), "not a whole one"),
    ],
)
def test_what_is_no_token(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_join_token(text)
    assert "secret" not in str(caught.value)

from __future__ import annotations

from typing import Any

import pytest

from relay.policy.mask import Mask


@pytest.mark.parametrize(
    "key",
    ["password", "api_key", "apiKey", "X-Api-Key", "client_secret", "Authorization", "bearer_token", "private_key_pem"],
)
def test_what_looks_like_a_secret_is_hidden(key: str) -> None:
    assert Mask().tree({key: "s3cret"}) == {key: "[secret 1]"}
    assert Mask().tree({key: ["s3cret", 5]}) == {key: ["[secret 1]", "[secret 2]"]}


@pytest.mark.parametrize(
    "value",
    [
        {"endpoint": "https://example.test/v1", "tokens_per_second": 5, "key_file": "/etc/key"},
        {"password": "${env:PASSWORD}", "authorization": "Bearer {{.token}}", "token": None, "secret": True},
        {"token": {"name": "x"}},
        ["a", 1, None],
    ],
)
def test_all_else_stays(value: Any) -> None:
    assert Mask().tree(value) == value


def test_equal_secrets_have_equal_numbers() -> None:
    mask = Mask()
    assert mask.tree({"token": "a", "password": "b"}) == {"token": "[secret 1]", "password": "[secret 2]"}
    assert mask.tree({"token": "b"}) == {"token": "[secret 2]"}


def test_user_info_of_an_url() -> None:
    assert Mask().tree({"url": "postgres://me:pw@db/x"}) == {"url": "postgres://[secret 1]@db/x"}

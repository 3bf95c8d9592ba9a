from __future__ import annotations

from typing import Any

import pytest

from relay.policy import template as templates
from relay.policy.mask import Mask
from relay.policy.model import ConfigTemplate, Variable
from tests.policy.made import NAME, template


@pytest.mark.parametrize(
    "key",
    ["password", "api_key", "apiKey", "X-Api-Key", "client_secret", "Authorization", "bearer_token", "private_key_pem"],
)
def test_secrets_are_hidden(key: str) -> None:
    assert Mask().tree({key: "s3cret"}) == {key: "[secret 1]"}
    assert Mask().tree({key: ["s3cret", 5]}) == {key: ["[secret 1]", "[secret 2]"]}


@pytest.mark.parametrize(
    "value",
    [
        {"endpoint": "https://example.test/v1", "tokens_per_second": 5, "key_file": "/etc/key"},
        {"password": "${env:PASSWORD}", "authorization": "Bearer {{.token}}", "token": None, "secret": True},
        ["a", 1, None],
    ],
)
def test_other_values_stay(value: Any) -> None:
    assert Mask().tree(value) == value


def test_equal_secrets_have_equal_numbers() -> None:
    mask = Mask()
    assert mask.tree({"token": "a", "password": "b"}) == {"token": "[secret 1]", "password": "[secret 2]"}
    assert mask.tree({"token": "b"}) == {"token": "[secret 2]"}


def test_user_info_in_urls_is_hidden() -> None:
    assert Mask().tree({"url": "postgres://me:pw@db/x"}) == {"url": "postgres://[secret 1]@db/x"}


def test_config_is_masked_by_field_name() -> None:
    tree = template({"password": "{{.name}}", "user": "{{.name}}"}, NAME)
    resolved, _ = templates.resolve(tree, {"name": "x"}, {})
    assert Mask().config(tree, resolved) == "password: '[secret 1]'\nuser: x\n"


def test_text_config_is_masked_by_variable_name() -> None:
    password = Variable(name="password", type="string")
    spec = {"variables": [password.model_dump(exclude_unset=True)], "text": "login {{.password}}"}
    text = ConfigTemplate.model_validate({**template({"a": 1}).model_dump(), "spec": spec})
    resolved, _ = templates.resolve(text, {"password": "x"}, {})
    assert Mask().config(text, resolved) == "login [secret 1]"


def test_text_is_masked_as_the_config_that_it_is() -> None:
    assert Mask().text("password: a\nuser: b\n") == "password: '[secret 1]'\nuser: b\n"
    assert Mask().text('{"token": "a"}', "application/json") == '{\n  "token": "[secret 1]"\n}\n'
    for hidden in ("hello", "- a", "a: 1\n---\nb: 2", "a: [", "a: 1\na: 2"):
        assert Mask().text(hidden) == "[secret 1]\n"
    assert Mask().text("\n") == "\n"


def test_document_is_masked() -> None:
    spec = {"values": {"password": "a"}, "text": "token: b\n"}
    assert Mask().document(spec) == {"values": {"password": "[secret 1]"}, "text": "token: '[secret 2]'\n"}
    assert Mask().document({"config": {"a": 1}}) == {"config": {"a": 1}}


def test_default_of_a_secret_variable_is_hidden() -> None:
    variables = [
        {"name": "db_password", "type": "string", "default": "a", "enum": ["a", "b"]},
        {"name": "level", "type": "string", "default": "info"},
        "odd",
    ]
    assert Mask().document({"variables": variables})["variables"] == [
        {"name": "db_password", "type": "string", "default": "[secret 1]", "enum": ["[secret 1]", "[secret 2]"]},
        {"name": "level", "type": "string", "default": "info"},
        "odd",
    ]


def test_what_lies_below_a_secret_name_is_hidden() -> None:
    assert Mask().tree({"credentials": {"value": "x", "list": ["y"]}}) == {
        "credentials": {"value": "[secret 1]", "list": ["[secret 2]"]}
    }


def test_text_without_secrets_keeps_its_comments() -> None:
    assert Mask().text("a: 1  # why\n") == "a: 1  # why\n"


def test_secret_variable_is_hidden_wherever_its_value_goes() -> None:
    password = Variable(name="password", type="string")
    tree = template({"endpoint": "{{.password}}"}, password)
    resolved, _ = templates.resolve(tree, {"password": "x"}, {})
    assert Mask().config(tree, resolved) == "endpoint: '[secret 1]'\n"


def test_literal_secret_in_a_text_template_is_hidden() -> None:
    text = ConfigTemplate.model_validate(
        {**template({"a": 1}).model_dump(), "spec": {"text": "password: x\nuser: y\n"}}
    )
    resolved, _ = templates.resolve(text, {}, {})
    assert Mask().config(text, resolved) == "password: '[secret 1]'\nuser: y\n"


def test_what_is_masked_stays_as_it_is() -> None:
    assert Mask().tree({"password": "[secret 7]"}) == {"password": "[secret 7]"}

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.policy import template as templates
from relay.policy.model import ConfigTemplate, Variable
from relay.policy.resources import template_resource
from tests.policy.made import NAME, RATE, template
from tests.policy.published import TEMPLATE


def rendered(subject: ConfigTemplate, values: dict[str, Any], region: dict[str, Any] | None = None) -> Any:
    resolved, problems = templates.resolve(subject, values, region or {})
    assert problems == []
    return yaml.safe_load(templates.render(subject, resolved))


def test_whole_scalar_takes_a_typed_value_and_text_takes_text() -> None:
    subject = template({"whole": "{{.rate}}", "spaced": "{{ .rate }}", "part": "at {{.rate}}!", "plain": 5}, RATE)
    assert rendered(subject, {"rate": 0.5}) == {"whole": 0.5, "spaced": 0.5, "part": "at 0.5!", "plain": 5}


def test_lists_and_maps_are_inserted_whole() -> None:
    subject = template(
        {"a": "{{.l}}", "b": ["{{.m}}"]}, Variable(name="l", type="list"), Variable(name="m", type="map")
    )
    assert rendered(subject, {"l": [1, "x"], "m": {"k": True}}) == {"a": [1, "x"], "b": [{"k": True}]}


def test_only_placeholders_are_substituted() -> None:
    subject = template({"{{.rate}}": "{{ not ours }} ${env:X} {{.rate"}, RATE)
    assert rendered(subject, {}) == {"{{.rate}}": "{{ not ours }} ${env:X} {{.rate"}


def test_unset_variable_is_null_or_empty() -> None:
    subject = template({"a": "{{.x}}", "b": "<{{.x}}>"}, Variable(name="x", type="string"))
    assert rendered(subject, {}) == {"a": None, "b": "<>"}


def test_assignment_overrides_region_overrides_default() -> None:
    subject = template({"a": "{{.rate}}"}, RATE)
    assert rendered(subject, {}) == {"a": 0.1}
    assert rendered(subject, {}, {"rate": 0.2, "other": 1}) == {"a": 0.2}
    assert rendered(subject, {"rate": 0.3}, {"rate": 0.2}) == {"a": 0.3}
    resolved, _ = templates.resolve(subject, {}, {"rate": 0.2})
    assert resolved.origins == {"rate": "region"}


def test_missing_unknown_and_wrong_values_are_named() -> None:
    subject = template({"a": "{{.name}}"}, NAME, RATE)
    _, problems = templates.resolve(subject, {"nome": "x", "rate": "fast"}, {})
    assert problems == [
        ("nome", "t@v1 has no variable nome"),
        ("name", "t@v1 requires a value for name"),
        ("rate", "'fast' is not of type float"),
    ]


def test_placeholders_must_name_declared_variables() -> None:
    subject = template({"a": ["x {{.rate}} {{.typo}}"]}, RATE)
    assert templates.problems_of(subject) == [("spec.config.a.0", "variable typo is not declared")]


def test_strings_stay_strings_for_yaml_1_1_readers() -> None:
    subject = template({"a": "{{.s}}"}, Variable(name="s", type="string"))
    for text in ("on", "12:30", "1.0", "~", "0o7", "null", "", "é\n"):
        assert rendered(subject, {"s": text}) == {"a": text}


def test_json_output() -> None:
    subject = template({"a": "{{.rate}}"}, RATE, content_type="application/json")
    resolved, _ = templates.resolve(subject, {}, {})
    assert json.loads(templates.render(subject, resolved)) == {"a": 0.1}


def test_shared_parts_are_rendered_without_yaml_aliases() -> None:
    shared = [1]
    assert b"&" not in templates.render(template({"a": shared, "b": shared}), templates.Resolved({}, {}))


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), trees, min_size=1, max_size=3))
def test_equal_inputs_give_equal_bytes_whatever_their_order(config: dict[str, Any]) -> None:
    nothing = templates.Resolved({}, {})
    turned = dict(reversed(config.items()))
    assert templates.render(template(config), nothing) == templates.render(template(turned), nothing)


def test_content_hash_covers_all_inputs() -> None:
    base = templates.Resolved({"a": 1}, {})
    one = templates.content_hash(b"t", base, 1)
    assert one == templates.content_hash(b"t", templates.Resolved({"a": 1}, {"a": "region"}), 1)
    assert len({one, templates.content_hash(b"u", base, 1), templates.content_hash(b"t", base, 2)}) == 3


def text_template(**spec: Any) -> ConfigTemplate:
    return ConfigTemplate.model_validate(
        {
            "apiVersion": "opamp.io/v1",
            "kind": "ConfigTemplate",
            "metadata": {"name": "fluent-bit", "version": "v1"},
            "spec": {
                "variables": [{"name": "flush", "type": "int", "default": 5}, {"name": "tags", "type": "list"}],
                **spec,
            },
        }
    )


def test_text_config_with_placeholders() -> None:
    template = text_template(
        text="[SERVICE]\n    flush {{.flush}}\n    tags {{ .tags }}\n    {{other}} ${ENV}\n",
        content_type="application/x-fluent-bit",
    )
    resolved, problems = templates.resolve(template, {"tags": ["a", 1]}, {})
    assert problems == []
    expected = b'[SERVICE]\n    flush 5\n    tags ["a",1]\n    {{other}} ${ENV}\n'
    assert templates.render(template, resolved) == expected
    assert template.spec.content_type == "application/x-fluent-bit"
    assert text_template(text="x").spec.content_type == "text/plain"
    assert templates.problems_of(text_template(text="{{.typo}}")) == [("spec.text", "variable typo is not declared")]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, "either config or text"),
        ({"text": "x", "config": {"a": 1}}, "either config or text"),
        ({"config": {"a": 1}, "content_type": "application/toml"}, "with text it may be any"),
        ({"text": "x", "content_type": "no type"}, "pattern"),
        ({"text": ""}, "at least 1"),
    ],
)
def test_invalid_template_forms_are_refused(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        text_template(**spec)


def test_payload_of_a_tree_has_no_text_field() -> None:
    _, payload = template_resource(TEMPLATE)
    assert b'"text":' not in payload
    assert b'"config":' not in template_resource(text_template(text="x"))[1]


def test_placeholders_are_found_only_in_text() -> None:
    subject = template({"a": "{{.rate}} {{.rate}}", "b": 5, "c": ["{{.name}}"]}, RATE, NAME)
    assert list(templates.placeholders(subject)) == [
        ("spec.config.a", "rate"),
        ("spec.config.a", "rate"),
        ("spec.config.c.0", "name"),
    ]

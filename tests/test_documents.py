import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.documents import MAX_DOCUMENT_BYTES, canonical_json, core_scalar, leaves, parse, parse_duration
from relay.errors import Refused


def refused(text: str | bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse(text, "f.yaml")
    return str(caught.value)


def test_scalars_follow_yaml_1_2() -> None:
    (document,) = parse("a: on\nb: 12:30\nc: 010\nd: 0x1F\ne: 1e3\nf: ~\ng: 'true'\nh: true\ni: 0o17", "f")
    assert document.value == {
        "a": "on", "b": "12:30", "c": 10, "d": 31, "e": 1000.0, "f": None, "g": "true", "h": True, "i": 15
    }  # fmt: skip
    assert math.isnan(core_scalar(".nan"))
    assert core_scalar("-.inf") == -math.inf
    assert core_scalar("9" * 41) == "9" * 41


def test_every_value_has_its_line() -> None:
    (document,) = parse("a:\n  b: 1\n  c:\n    - x\n    - y\n", "f.yaml")
    assert document.lines["a.c.1"] == 5
    assert str(document.problem("a.b", "bad")) == "f.yaml:2: a.b: bad"
    assert str(document.problem("a.c.7.z", "bad")) == "f.yaml:3: a.c.7.z: bad"


def test_several_and_empty_documents() -> None:
    assert [d.value for d in parse("---\n---\na: 1\n---\nb: 2\n", "f")] == [{"a": 1}, {"b": 2}]
    assert [d.line for d in parse("a: 1\n---\nb: 2\n", "f")] == [1, 3]


def test_duplicate_keys_are_refused_with_their_line() -> None:
    assert refused("a: 1\nb:\n  c: 1\n  c: 2\n") == "f.yaml:4: b.c: duplicate key"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not YAML"),
        ("a: !python/object:os.system x", "tag"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a]\n: 1", "a key must be a scalar"),
        ("a: .inf", "finite"),
        ("[" * 100 + "]" * 100, "nested"),
        ("[" * 900_000, "nested"),
        ("{a: " * 200_000, "nested"),
        (b"a: \xff", "not UTF-8"),
        ("a" * (MAX_DOCUMENT_BYTES + 1), "is more than the maximum, "),
        ("---\na: 1\n" * 1001, "more than 1000 documents"),
    ],
)
def test_bad_documents_are_refused_with_a_reason(text: str | bytes, reason: str) -> None:
    assert reason in refused(text)


def test_alias_bomb_is_limited() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    for i in range(1, 10):
        bomb += f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n"
    assert "aliases" in refused(bomb)


def test_recursive_alias_is_refused() -> None:
    assert "nested" in refused("a: &a [*a]")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("7d", 604800), ("1.5m", 90)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1y", "-5s", "1h 5m"])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json_is_order_independent(value: object) -> None:
    def turned(node: object) -> object:
        if isinstance(node, dict):
            return {k: turned(node[k]) for k in reversed(list(node))}
        return [turned(n) for n in node] if isinstance(node, list) else node

    assert canonical_json(turned(value)) == canonical_json(value)


@given(st.binary(max_size=200))
def test_only_documented_errors_are_raised(data: bytes) -> None:
    with contextlib.suppress(Refused):
        parse(data, "f")


def test_leaves_name_every_scalar() -> None:
    assert list(leaves({"a": [1, {"b": 2}], "c": None})) == [("a.0", 1), ("a.1.b", 2), ("c", None)]


def test_tab_is_named_in_the_error() -> None:
    with pytest.raises(Refused, match=r"f:2: not YAML: a line begins with a tab; YAML is indented with spaces"):
        parse("a:\n\tb: 1\n", "f")

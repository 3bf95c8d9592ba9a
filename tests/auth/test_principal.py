from __future__ import annotations

from typing import Any

import pytest

from relay.auth.principal import Method, Principal, is_subject, label_problem


@pytest.mark.parametrize("value", ["a", "agent-001", "é" * 256])
def test_subject(value: str) -> None:
    assert is_subject(value)


@pytest.mark.parametrize("value", ["", "a" * 257, "a\nb", "a\x00", "\u202e", None, 7, ["a"]])
def test_not_a_subject(value: Any) -> None:
    assert not is_subject(value)


def test_labels() -> None:
    assert not label_problem({})
    assert not label_problem({"team": "a", "n": 1, "x": 0.5, "b": True, "k" * 128: "v" * 256})


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["a"], "must be a mapping"),
        ({str(i): "" for i in range(33)}, "33 labels are more than the maximum, 32"),
        ({1: "a"}, "label 1: a key is printable text"),
        ({"": "a"}, "label '': a key"),
        ({"k" * 129: "a"}, "of 1 to 128 characters"),
        ({"a\n": "a"}, "printable"),
        ({"region": "eu"}, "label region is set by an agent's node"),
        ({"a": None}, "label a: a value is text"),
        ({"a": float("nan")}, "label a: a value is text, a number"),
        ({"a": ["b"]}, "label a: a value is text"),
        ({"a": "v" * 257}, "label a: the value must be printable and have at most 256"),
        ({"a": "\ud800"}, "label a: the value must be printable"),
        ({"a": "b\nc"}, "label a: the value must be printable"),
    ],
)
def test_label_problem(labels: Any, problem: str) -> None:
    assert problem in label_problem(labels)


def test_end_of_a_credential() -> None:
    ending = Principal("s", Method.JWT, "", expires_at=100.0)
    assert [ending.has_ended(now) for now in (99.9, 100.0)] == [False, True]
    assert not Principal("s", Method.API_KEY, "key-1").has_ended(1e12)

import json

import pytest

from relay.documents import parse
from relay.policy import reading


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "f.yaml:1: not a mapping"),
        ("{a: 1}", "f.yaml:1: kind is missing"),
        ("kind: Nonsense", "f.yaml:1: kind: 'Nonsense' is not one of"),
        ("kind: [ConfigTemplate]", "f.yaml:1: kind: ['ConfigTemplate'] is not one of"),
    ],
)
def test_invalid_documents(text: str, problem: str) -> None:
    document, found = reading.read(parse(text, "f.yaml")[0])
    assert document is None
    assert str(found[0]).startswith(problem)


VARIABLES = {"apiVersion": "opamp.io/v1", "kind": "RegionVariables", "metadata": {"name": "eu"}, "spec": {"values": {}}}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"metadata": {"name": "a b"}}, "metadata.name: 'a b' is not a valid name"),
        ({"metadata": {"name": "eu", "nane": 1}}, "metadata.nane: unknown key; did you mean name?"),
        ({"spec": {}}, "spec.values: is missing"),
        ({"apiVersion": "v0"}, "apiVersion: Input should be 'opamp.io/v1'"),
    ],
)
def test_problems_of_a_document(wrong: dict[str, object], problem: str) -> None:
    document, found = reading.read(parse(json.dumps({**VARIABLES, **wrong}), "f.yaml")[0])
    assert document is None
    assert problem in str(found[0])


def test_pattern_problem_shows_the_expected_form() -> None:
    file = {"name": "t", "version": "v1"}
    spec = {"text": "x", "content_type": "no type"}
    template = {"apiVersion": "opamp.io/v1", "kind": "ConfigTemplate", "metadata": file, "spec": spec}
    _, (problem,) = reading.read(parse(json.dumps(template), "f.yaml")[0])
    assert "'no type' is not of the form" in problem.reason


def test_valid_document() -> None:
    document, problems = reading.read(parse(json.dumps(VARIABLES), "f.yaml")[0])
    assert problems == []
    assert document is not None
    assert document.key == "eu"

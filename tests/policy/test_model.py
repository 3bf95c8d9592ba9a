from pathlib import Path

import pytest

from relay.documents import parse
from relay.policy import model, reading

TEMPLATE = """
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: t, version: v1}
spec:
  variables:
    - {name: x, type: %s}
  config: {a: "{{.x}}"}
"""


def problems(text: str) -> list[str]:
    _, found = reading.read(parse(text, "f.yaml")[0])
    return [str(p) for p in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "f.yaml:1: not a mapping"),
        ("a: 1", "f.yaml:1: kind is missing"),
        ("kind: Nonsense", "f.yaml:1: kind: 'Nonsense' is not one of ConfigTemplate"),
        ("kind: [a]", "f.yaml:1: kind: ['a'] is not one of"),
        ("kind: RegionVariables\napiVersion: v0\nmetadata: {name: a}\nspec: {values: {}}", "f.yaml:2: apiVersion"),
        ("kind: RegionVariables\napiVersion: opamp.io/v1\nmetadata: {name: a b}\nspec: {values: {}}", "not a valid name"),
        ("kind: RegionVariables\napiVersion: opamp.io/v1\nmetadata: {name: a}", "f.yaml:1: spec: is missing"),
        ("kind: RegionVariables\napiVersion: opamp.io/v1\nmetadata: {name: a}\nspec: {values: {}}\nx: 1",
         "f.yaml:5: x: unknown key"),
    ],
)  # fmt: skip
def test_structural_problems_name_file_line_and_path(text: str, expected: str) -> None:
    assert any(expected in p for p in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("nonsense", "should be 'string'"),
        ("string, min: 1", "min and max are for int and float"),
        ("int, min: 5, max: 1", "min is greater than max"),
        ("int, required: true, default: 1", "a required variable cannot have a default"),
        ("int, enum: [a]", "enum: 'a' is not of type int"),
        ("int, default: x", "default: 'x' is not of type int"),
        ("float, default: 3, max: 2", "default: 3 is greater than the maximum, 2"),
        ("bool, default: 1", "default: 1 is not of type bool"),
        ("list, default: {a: 1}", "is not of type list"),
        ("map, default: [1]", "is not of type map"),
        ("int, default: true", "default: True is not of type int"),
    ],
)
def test_variables_must_be_consistent(variable: str, reason: str) -> None:
    assert any(reason in p for p in problems(TEMPLATE % variable)), problems(TEMPLATE % variable)


def test_variable_is_declared_once() -> None:
    twice = TEMPLATE.replace("    - {name: x, type: %s}", "    - {name: x, type: int}\n    - {name: x, type: int}")
    assert any("variable x is declared twice" in p for p in problems(twice))


def test_version_must_be_text_to_keep_trailing_zeros() -> None:
    assert any("in quotes" in p for p in problems((TEMPLATE % "int").replace("v1}", "1.10}")))


def test_enums_and_bounds() -> None:
    variable = model.Variable(name="x", type="string", enum=["a", "b"])
    assert variable.problem_with("a") is None
    assert variable.problem_with("c") == "'c' is not one of a, b"
    bounded = model.Variable(name="x", type="float", min=0.01, max=1.0)
    assert bounded.problem_with(0.001) == "0.001 is less than the minimum, 0.01"
    assert bounded.problem_with(1) is None


def test_template_of_the_guide_is_accepted() -> None:
    text = (Path(__file__).parent / "guide_template.yaml").read_text()
    document, found = reading.read(parse(text, "guide")[0])
    assert found == []
    assert isinstance(document, model.ConfigTemplate)
    assert document.key == "standard-collector@v1.0.0"


def test_keys_of_documents() -> None:
    text = "apiVersion: opamp.io/v1\nkind: %s\nmetadata: {name: n}\nspec: %s"
    for kind, spec in (("RegionVariables", "{values: {}}"), ("ConfigAssignment", "{template: {name: t, version: v1}}")):
        document, _ = reading.read(parse(text % (kind, spec), "f")[0])
        assert document is not None
        assert document.key == "n"


@pytest.mark.parametrize(
    ("one", "other"), [(1.0, 1), (True, True), ("a", "a"), ([1], [1]), (float("nan"), float("nan"))]
)
def test_equal_canonical_values(one: object, other: object) -> None:
    assert model.canonical(one) == model.canonical(other)


def test_equivalent_selectors_have_one_identity() -> None:
    one = model.Selector(labels={"a": 1, "b": "x"}, agent_ids=["y", "z"])
    other = model.Selector(labels={"b": "x", "a": 1.0}, agent_ids=["z", "y"])
    assert one.identity == other.identity != model.Selector().identity
    assert one.terms == (("label", "a", b"1"), ("label", "b", b'"x"'))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{text: x}", ""),
        ("{text: x, config: {a: 1}}", "either config or text"),
        ("{config: {a: 1}, content_type: text/plain}", "with text it may be any"),
        ("{config: {a: 1}, variables: [{name: x, type: int}, {name: x, type: int}]}", "variable x is declared twice"),
    ],
)
def test_template_has_config_or_text(spec: str, said: str) -> None:
    found = problems(
        f"apiVersion: opamp.io/v1\nkind: ConfigTemplate\nmetadata: {{name: t, version: v1}}\nspec: {spec}\n"
    )
    assert (said in found[0]) if said else not found


def test_template_body_and_names() -> None:
    text = "apiVersion: opamp.io/v1\nkind: ConfigTemplate\nmetadata: {name: t, version: v1}\nspec: {text: x}\n"
    document, _ = reading.read(parse(text, "f.yaml")[0])
    assert isinstance(document, model.ConfigTemplate)
    assert (document.key, document.spec.body, document.spec.content_type) == ("t@v1", "x", "text/plain")
    assert model.VersionRef(name="t", version="v1").key == document.key

import pytest

from relay.documents import parse
from relay.policy import kinds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "f.yaml:1: not a mapping"),
        ("{a: 1}", "f.yaml:1: kind is missing"),
        ("kind: Nonsense", "f.yaml:1: kind: 'Nonsense' is not one of"),
        ("kind: [ConfigTemplate]", "f.yaml:1: kind: ['ConfigTemplate'] is not one of"),
    ],
)
def test_what_is_no_document(text: str, problem: str) -> None:
    document, found = kinds.read(parse(text, "f.yaml")[0])
    assert document is None
    assert str(found[0]).startswith(problem)


def test_every_kind_has_its_plural() -> None:
    assert {k.plural for k in kinds.KINDS.values()} == {
        "templates", "assignments", "regionvariables", "strategies", "packageassignments", "signingkeys"
    }  # fmt: skip

import pytest

from relay.control.documents.reading import read
from relay.errors import Refused
from tests.conftest import TEMPLATE, assignment
from tests.control.texts import TWO_STAGES


def refused(*texts: str) -> list[str]:
    with pytest.raises(Refused) as caught:
        read([(f"{i}.yaml", text) for i, text in enumerate(texts)])
    return [str(problem) for problem in caught.value.problems]


def test_documents_are_read_with_their_source() -> None:
    found = read([("a.yaml", TEMPLATE + assignment("a")), ("b.yaml", TWO_STAGES)])
    assert [(source.source, document.kind) for source, document in found] == [
        ("a.yaml", "ConfigTemplate"),
        ("a.yaml", "ConfigAssignment"),
        ("b.yaml", "RolloutStrategy"),
    ]


def test_all_problems_of_all_texts_are_named() -> None:
    assert len(refused("a: [", "", "kind: Nonsense", assignment("a") + assignment("a"))) == 4
    (twice,) = refused(assignment("a"), assignment("a"))
    assert twice.endswith("ConfigAssignment a is defined twice; first at 0.yaml:2")
    (wrong,) = refused(TEMPLATE.replace("{{.rate}}", "{{.speed}}"))
    assert "speed" in wrong


@pytest.mark.parametrize("ttl", ["9" * 400 + "d", "5s"])
def test_durations_have_bounds(ttl: str) -> None:
    (problem,) = refused(TWO_STAGES.replace("spec:\n", f'spec:\n  candidate_ttl: "{ttl}"\n'))
    assert "candidate_ttl" in problem

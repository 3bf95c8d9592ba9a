from __future__ import annotations

from typing import Any

import pytest

from relay.documents import parse
from relay.policy.reading import read
from relay.policy.role_binding import RoleBinding

BINDING = """
apiVersion: opamp.io/v1
kind: RoleBinding
metadata: {name: team-a}
spec:
  role: author
  subjects: [{user: alice@example.com}, {group: team-a}]
  scope: {labels: {team: a}}
"""


def test_role_binding_is_read() -> None:
    (document,) = parse(BINDING, "f")
    binding, problems = read(document)
    assert problems == []
    assert isinstance(binding, RoleBinding)
    assert binding.key == "team-a"
    assert [(s.user, s.group) for s in binding.spec.subjects] == [("alice@example.com", None), (None, "team-a")]
    assert binding.spec.scope.labels == {"team": "a"}


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("role: author", "role: king", "spec.role"),
        ("[{user: alice@example.com}, {group: team-a}]", "[]", "spec.subjects"),
        ("{group: team-a}", "{group: team-a, user: b}", "spec.subjects.1"),
        ("{group: team-a}", "{}", "spec.subjects.1"),
        ("{group: team-a}", '{group: "a\\nb"}', "spec.subjects.1.group"),
        ("{labels: {team: a}}", "{labels: {team: 7}}", "spec.scope.labels.team"),
        ("{labels: {team: a}}", "{label: {team: a}}", "spec.scope.label"),
    ],
)
def test_bad_bindings_are_named(old: str, new: str, path: str) -> None:
    (document,) = parse(BINDING.replace(old, new), "f")
    found, problems = read(document)
    assert found is None
    assert [problem.path for problem in problems] == [path]


def test_scope_may_be_left_out() -> None:
    text: Any = BINDING.replace("  scope: {labels: {team: a}}\n", "")
    (document,) = parse(text, "f")
    binding, _ = read(document)
    assert isinstance(binding, RoleBinding)
    assert binding.spec.scope.labels == {}

from __future__ import annotations

import pytest

from relay.control.access.roles import VERBS, Grant, Role, Verb
from relay.documents import Scalar
from relay.policy.model import Selector

TEAM_A = Grant(Role.AUTHOR, {"team": "a"})


def test_roles() -> None:
    assert all(Verb.READ in verbs for verbs in VERBS.values())
    assert VERBS[Role.ADMIN] == set(Verb)
    holders = {verb: {role.value for role in Role if Grant(role).allows(verb)} for verb in Verb}
    assert holders[Verb.WRITE] == holders[Verb.REVEAL] == {"author", "admin"}
    assert holders[Verb.APPROVE] == {"approver", "admin"}
    assert holders[Verb.OPERATE] == holders[Verb.REVOKE] == {"operator", "admin"}
    assert holders[Verb.ADMIN] == {"admin"}


@pytest.mark.parametrize(
    ("labels", "is_covered"),
    [({"team": "a"}, True), ({"team": "a", "x": "y"}, True), ({"team": "b"}, False), ({}, False)],
)
def test_scope(labels: dict[str, Scalar], is_covered: bool) -> None:
    assert TEAM_A.covers(Selector(labels=labels)) is is_covered
    assert TEAM_A.has(labels) is is_covered
    assert Grant(Role.AUTHOR).covers(Selector(labels=labels))
    assert Grant(Role.AUTHOR).has(labels)


@pytest.mark.parametrize(
    ("other", "is_included"),
    [
        (TEAM_A, True),
        (Grant(Role.VIEWER, {"team": "a", "env": "test"}), True),
        (Grant(Role.AUTHOR), False),
        (Grant(Role.AUTHOR, {"team": "b"}), False),
        (Grant(Role.APPROVER, {"team": "a"}), False),
    ],
)
def test_a_grant_includes_less(other: Grant, is_included: bool) -> None:
    assert TEAM_A.includes(other) is is_included

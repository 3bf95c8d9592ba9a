from __future__ import annotations

import pytest

from relay.control.access.roles import VERBS, Grant, Grants, Role, Verb
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


TEAM_B = Grant(Role.OPERATOR, {"team": "b"})
BOTH = Grants((TEAM_A, TEAM_B))


def test_grants_do_not_widen_each_other() -> None:
    assert BOTH.allows(Verb.WRITE)
    assert BOTH.allows(Verb.OPERATE)
    writing = BOTH.to(Verb.WRITE)
    assert writing.each == (TEAM_A,)
    assert not writing.covers(Selector(labels={"team": "b"}))
    assert not writing.has({"team": "b"})
    assert BOTH.to(Verb.READ) == BOTH
    assert BOTH.scopes == ({"team": "a"}, {"team": "b"})
    assert BOTH.has({"team": "b"})
    assert BOTH.covers(Selector(labels={"team": "a", "x": "y"}))
    assert not BOTH.has({"team": "c"})


def test_one_grant_for_all_agents_is_for_all() -> None:
    mixed = Grants((TEAM_A, Grant(Role.VIEWER)))
    assert (mixed.is_scoped, mixed.scopes) == (False, ())
    assert mixed.to(Verb.WRITE).is_scoped
    assert not mixed.is_admin
    assert Grants((TEAM_A, Grant(Role.ADMIN))).is_admin
    assert not Grants((Grant(Role.ADMIN, {"team": "a"}),)).is_admin


def test_reveal_needs_the_verb_for_everything_that_is_read() -> None:
    assert Grants((TEAM_A,)).may_reveal_all()
    assert not BOTH.may_reveal_all()
    assert not Grants((TEAM_A, Grant(Role.VIEWER))).may_reveal_all()
    assert Grants((Grant(Role.ADMIN), TEAM_B)).may_reveal_all()


def test_tokens_of_one_with_several_grants() -> None:
    assert BOTH.includes(Grant(Role.AUTHOR, {"team": "a"}))
    assert not BOTH.includes(Grant(Role.AUTHOR, {"team": "b"}))


def test_grants_in_words() -> None:
    assert str(BOTH) == "author for team=a; operator for team=b"
    assert BOTH.described_scope == "team=a; team=b"
    assert (BOTH.described_roles, Grants((TEAM_A,)).described_roles) == ("roles author, operator", "role author")
    assert Grants(()).described_roles == "person without a RoleBinding"
    assert str(Grant(Role.VIEWER)) == "viewer"


def test_nobody_sees_nothing() -> None:
    nobody = Grants(())
    assert nobody.scopes == ({"": ""},)
    assert not nobody.may_reveal_all()
    assert not nobody.has({})

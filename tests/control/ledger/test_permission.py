"""What people may change: by role and by scope."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from relay.auth.revocations import Kind
from relay.control.access.actor import SYSTEM, Actor
from relay.control.access.revocations import Revocation
from relay.control.access.roles import Grant, Grants, Role
from relay.control.ledger.change import Change, Step
from relay.control.ledger.permission import check_change, check_documents, check_everywhere, check_name
from relay.control.ledger.state import State
from relay.errors import Forbidden
from relay.policy.packages import PackageFile
from tests.conftest import TEMPLATE, assignment
from tests.control.access.test_keys import ONE, OTHER
from tests.control.ledger.made import ONE_AGENT, applied, draft, latest, terms, with_package
from tests.control.texts import TWO_STAGES, staged, variables
from tests.packages import package_assignment

TEAM_A = Actor("ann", verified=True, grants=Grants((Grant(Role.AUTHOR, {"team": "a"}),)))
ANYBODYS = Actor("bob", verified=True, grants=Grants((Grant(Role.AUTHOR),)))
OURS, THEIRS = "{labels: {team: a}}", "{labels: {team: b}}"
BASE = applied(
    State(),
    TEMPLATE,
    TWO_STAGES,
    assignment("ours", selector=OURS),
    assignment("theirs", selector=THEIRS, slot="b"),
)
SIGNING_KEY = """---
apiVersion: opamp.io/v1
kind: PackageSigningKey
metadata: {name: release}
spec:
  public_key: |
    -----BEGIN PUBLIC KEY-----
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
    -----END PUBLIC KEY-----
"""


def allowed(by: Actor, change: Change[Any], before: State = BASE) -> str:
    """Empty if a change is allowed, else why not."""
    try:
        check_change(by, before, change)
    except Forbidden as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (assignment("ours", selector=OURS, rate=2), ""),
        (assignment("new", selector=OURS, slot="c"), ""),
        (TEMPLATE.replace("version: v1", "version: v2"), ""),
        (assignment("ours", selector="{}"), "assignment ours is for agents outside the scope team=a"),
        (assignment("ours", selector=THEIRS), "assignment ours is for agents outside the scope team=a"),
        (assignment("theirs", selector=OURS, slot="b"), "assignment theirs is for agents outside the scope team=a"),
        (assignment("theirs", selector=THEIRS, slot="b", rate=2), "assignment theirs is for agents outside"),
        (variables("eu", "{level: warn}"), "RegionVariables/eu is outside the scope team=a"),
        (
            SIGNING_KEY,
            "PackageSigningKey/release: the role author may not change this; an admin without a scope may",
        ),
    ],
)
def test_documents(text: str, reason: str) -> None:
    change = draft(BASE, text).change(None)
    assert allowed(TEAM_A, change).startswith(reason)
    assert bool(allowed(TEAM_A, change)) is bool(reason)
    assert allowed(SYSTEM, change) == ""


def test_without_a_scope_only_the_role_counts() -> None:
    assert allowed(ANYBODYS, draft(BASE, assignment("theirs", selector=THEIRS, slot="b", rate=2)).change(None)) == ""
    assert "may not change this" in allowed(ANYBODYS, draft(BASE, SIGNING_KEY).change(None))
    admin, scoped = (Actor("root", grants=Grants((Grant(Role.ADMIN, scope),))) for scope in ({}, {"team": "a"}))
    assert allowed(admin, draft(BASE, SIGNING_KEY).change(None)) == ""
    assert "may not change this" in allowed(scoped, draft(BASE, SIGNING_KEY).change(None))
    check_everywhere(admin, "the epoch")
    check_everywhere(SYSTEM, "the epoch")
    with pytest.raises(Forbidden, match="the epoch concerns agents outside the scope team=a"):
        check_everywhere(scoped, "the epoch")


def test_attack_another_file_for_a_package_that_others_have() -> None:
    named = draft(with_package(BASE), package_assignment()).change(None).state
    (version,) = named.catalog.packages.values()
    more = version.package.model_copy(update={"files": [*version.package.files, PackageFile(sha256="2" * 64, size=3)]})
    catalog = named.catalog.put_packages(dataclasses.replace(version, package=more))
    pushed = Change(dataclasses.replace(named, catalog=catalog), None)
    assert "outside the scope" in allowed(TEAM_A, pushed, named)
    assert allowed(ANYBODYS, pushed, named) == ""


def test_attack_revoking_and_giving_back_what_is_not_ones_own() -> None:
    state = dataclasses.replace(BASE, api_keys=BASE.api_keys.put([ONE, dataclasses.replace(OTHER, labels={})]))
    for kind, value, is_allowed in (
        (Kind.KEY, ONE.id, True),
        (Kind.KEY, OTHER.id, False),
        (Kind.KEY, "key-0000000000", False),
        (Kind.SUBJECT, "web", False),
        (Kind.AGENT, "a", False),
    ):
        revocation = Revocation(kind, value, "x", "ann", 1)
        after = dataclasses.replace(state, revocations={revocation.id: revocation})
        for change, before in ((Change(after, None), state), (Change(state, None), after)):
            assert (allowed(TEAM_A, change, before) == "") is is_allowed, (kind, value)
            assert allowed(ANYBODYS, change, before) == ""


def test_strategy_is_as_wide_as_the_assignments_that_name_it() -> None:
    changed = TWO_STAGES.replace("percentage: 10,", "percentage: 20,")
    unused = draft(BASE, changed).change(None)
    assert "used by no assignment of yours" in allowed(TEAM_A, unused), "it may be others'"
    fresh = draft(BASE, TWO_STAGES.replace("canary}", "mine}")).change(None)
    assert allowed(TEAM_A, fresh) == ""
    ours = applied(BASE, staged(1, "ours", selector=OURS))
    assert allowed(TEAM_A, draft(ours, changed).change(None), ours) == ""
    both = applied(ours, staged(1, "theirs", selector=THEIRS, slot="b"))
    reason = allowed(TEAM_A, draft(both, changed).change(None), both)
    assert reason.startswith("RolloutStrategy/canary, which theirs uses, is for agents outside the scope team=a")


def test_region_variables_by_region() -> None:
    eu = Actor("eve", grants=Grants((Grant(Role.AUTHOR, {"region": "eu"}),)))
    assert allowed(eu, draft(BASE, variables("eu", "{level: warn}")).change(None)) == ""
    assert "RegionVariables/us" in allowed(eu, draft(BASE, variables("us", "{level: warn}")).change(None))


def test_packages_count_where_they_are_assigned() -> None:
    state = with_package(BASE)
    assert allowed(TEAM_A, Change(state, None)) == ""
    assigned = draft(state, package_assignment()).change(None)
    assert "outside the scope" in allowed(TEAM_A, assigned, state)
    assert "no assignment of yours uses" in allowed(TEAM_A, Change(with_package(state, yanked="CVE"), None), state)
    assert "no assignment of yours uses" in allowed(TEAM_A, Change(BASE, None), state), "it may be others'"
    named = assigned.state
    assert "outside the scope" in allowed(TEAM_A, Change(with_package(named, yanked="CVE"), None), named)


def test_deletion() -> None:
    for name, is_allowed in (("ours", True), ("theirs", False)):
        after = BASE.catalog.without("ConfigAssignment", name)
        if is_allowed:
            check_documents(TEAM_A, BASE, after)
        else:
            with pytest.raises(Forbidden):
                check_documents(TEAM_A, BASE, after)
    check_documents(TEAM_A, BASE, BASE.catalog)
    with pytest.raises(Forbidden, match="deleting ConfigTemplate/basic@v1 concerns agents outside"):
        check_documents(TEAM_A, BASE, BASE.catalog.without("ConfigTemplate", "basic@v1"))
    check_documents(ANYBODYS, BASE, BASE.catalog.without("ConfigTemplate", "basic@v1"))


def test_steps_of_rollouts() -> None:
    on = terms(ONE_AGENT)
    state = applied(BASE, assignment("theirs", selector=THEIRS, slot="b", rate=3), on=on)
    rollout = latest(state, "theirs")
    by_hand, by_itself = Change(state, None, [Step(rollout, action="pause")]), Change(state, None, [Step(rollout)])
    assert "assignment theirs" in allowed(TEAM_A, by_hand, state)
    assert allowed(TEAM_A, by_itself, state) == ""
    assert allowed(ANYBODYS, by_hand, state) == ""


def test_keys_by_their_labels() -> None:
    state = dataclasses.replace(BASE, api_keys=BASE.api_keys.put([ONE]))
    assert allowed(TEAM_A, Change(state, None)) == ""
    stolen = dataclasses.replace(ONE, labels={"team": "b"})
    other = dataclasses.replace(BASE, api_keys=BASE.api_keys.put([dataclasses.replace(OTHER, labels={})]))
    changed = dataclasses.replace(state, api_keys=state.api_keys.put([stolen]))
    for change, before in ((Change(other, None), BASE), (Change(changed, None), state), (Change(state, None), changed)):
        assert "is for agents outside the scope team=a" in allowed(TEAM_A, change, before)


def test_one_document_by_name() -> None:
    check_name(TEAM_A, BASE, "ConfigAssignment", "ours")
    check_name(TEAM_A, BASE, "ConfigAssignment", "unknown")
    check_name(TEAM_A, BASE, "", "")
    check_name(SYSTEM, BASE, "ConfigAssignment", "theirs")
    with pytest.raises(Forbidden):
        check_name(TEAM_A, BASE, "ConfigAssignment", "theirs")


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("RoleBinding", "new", "RoleBinding/new: the role author may not change this"),
        ("PackageSigningKey", "new", "PackageSigningKey/new: the role author may not change this"),
        ("RegionVariables", "us", "RegionVariables/us is outside the scope team=a"),
        ("ConfigAssignment", "new", ""),
        ("ConfigAssignment", "theirs", "assignment theirs is for agents outside the scope team=a"),
    ],
)
def test_names_are_judged_before_there_is_a_document(kind: str, name: str, reason: str) -> None:
    def objection(by: Actor) -> str:
        try:
            check_name(by, BASE, kind, name)
        except Forbidden as error:
            return str(error)
        return ""

    assert objection(TEAM_A).startswith(reason)
    assert bool(objection(TEAM_A)) is bool(reason)
    assert objection(Actor("anybody")) == ""

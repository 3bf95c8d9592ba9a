"""The catalog that documents would lead to, and the warnings about it."""

from __future__ import annotations

import dataclasses

from relay.control.documents.checks import Checks
from relay.control.documents.proposal import Proposal, propose
from relay.control.documents.reading import read
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.policy.selector import Facts
from tests.conftest import TEMPLATE, assignment
from tests.control.documents.known import Known
from tests.control.ledger.made import NEEDS, ONE_AGENT, applied, latest, terms, with_package
from tests.control.texts import TWO_STAGES, staged
from tests.packages import package_assignment

CHECKS = Checks(known=Known(Facts("x", {"tier": "prod"}, {})))
BASE = applied(State(), TEMPLATE, TWO_STAGES)


def proposed(state: State, *texts: str) -> Proposal:
    return propose(state, read([("f.yaml", "".join(texts))]), CHECKS)


def warnings(state: State, *texts: str) -> tuple[str, ...]:
    return proposed(state, *texts).applied[-1].warnings


def test_proposal_actions_and_catalog() -> None:
    state = applied(BASE, assignment("a"))
    found = proposed(state, TEMPLATE, assignment("a", rate=2), assignment("b", priority=1))
    assert [(a.name, a.action) for a in found.applied] == [
        ("basic@v1", "unchanged"),
        ("a", "configured"),
        ("b", "created"),
    ]
    assert (set(found.after.assignments), set(state.catalog.assignments)) == ({"a", "b"}, {"a"})
    assert found.applied[1].before != found.applied[1].after


def test_only_labels_of_a_template_version_may_change() -> None:
    (problem,) = proposed(BASE, TEMPLATE.replace('rate: "', 'rate2: "')).problems
    assert problem.reason == "basic@v1 already exists with different content; a version never changes: use a new one"
    labelled = TEMPLATE.replace("version: v1", "version: v1, labels: {team: x}")
    assert proposed(BASE, labelled).applied[0].action == "configured"


def test_conflicting_assignments_are_named() -> None:
    state = applied(BASE, assignment("a"))
    (conflict,) = proposed(state, assignment("b")).conflicts
    assert "ConfigAssignment a has the same priority 0" in conflict.reason


def test_assignment_that_matches_no_agent_is_warned_about() -> None:
    (warning,) = warnings(BASE, assignment("a", selector="{labels: {tier: dev}}"))
    assert "matches none of the 1 known agents" in warning
    assert warnings(BASE, assignment("a", selector="{labels: {tier: prod}}")) == ()


def test_removing_strategy_or_approval_is_warned_about() -> None:
    state = applied(BASE, staged(1) + NEEDS)
    one, two = warnings(state, assignment("a"))
    assert "canary applies until a change completes" in one
    assert "no longer asks for approval" in two
    assert warnings(state, staged(2) + NEEDS) == ()


def test_withdrawn_change_is_warned_about() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    assert warnings(state, staged(2)) == (), "it is under way"
    ended = plan.abort(latest(state), "no", 1)
    over = dataclasses.replace(state, assignments={"a": state.assignments["a"].after(ended)})
    assert warnings(over, staged(2)) == (
        "its last change was withdrawn or refused (a-2); start again with `opampctl rollout retry a-2`",
    )


def test_yanked_package_is_warned_about() -> None:
    state = applied(with_package(BASE), package_assignment())
    state = applied(with_package(state, "2"), package_assignment("2", strategy="canary"), on=terms(ONE_AGENT))
    gone = with_package(state, "2", yanked="crashes")
    assert warnings(gone, package_assignment("2", strategy="canary")) == (
        "package otelcol@2 was yanked; assign another version",
    )

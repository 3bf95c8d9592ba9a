"""Revisions and rollouts that follow from documents."""

import dataclasses

import pytest

from relay.control.ledger.revise import check_publishable, revise
from relay.control.ledger.state import State
from relay.control.rollouts.revision import GlobalConfig
from relay.control.rollouts.rollout import RolloutState
from relay.errors import Refused
from tests.conftest import TEMPLATE, assignment
from tests.control.ledger.made import NEEDS, ONE_AGENT, applied, draft, latest, shown, terms, with_package
from tests.control.texts import TWO_STAGES, staged, variables
from tests.packages import package_assignment

BASE = applied(State(), TEMPLATE, TWO_STAGES)


def without(state: State, name: str = "a") -> State:
    catalog = state.catalog.without("ConfigAssignment", name)
    return revise(state, catalog, terms(), by="ann", now_ms=9).change(None).state


def test_unchanged_documents_begin_no_rollout() -> None:
    state = applied(BASE, assignment("a"))
    assert draft(state, assignment("a")).rollouts == []
    assert draft(state, variables("eu", "{unknown: 1}")).rollouts == [], "no template declares it"


def test_region_variables_are_pinned_by_templates_that_declare_them() -> None:
    state = applied(BASE, assignment("a"), variables("eu", "{level: warn}"))
    declared = state.assignments["a"].declared
    assert isinstance(declared, GlobalConfig)
    assert list(declared.variables) == ["eu"]
    assert shown(applied(state, variables("eu", "{level: debug}"))) == ("a-2", RolloutState.COMPLETED)


def test_new_renderer_is_adopted_with_the_next_change() -> None:
    state = applied(BASE, assignment("a"))
    held = state.assignments["a"]
    assert isinstance(held.declared, GlobalConfig)
    old = dataclasses.replace(held.declared, renderer=0)
    state = dataclasses.replace(state, assignments={"a": dataclasses.replace(held, declared=old, stable=old)})
    assert applied(state, assignment("a")).assignments["a"].declared == old
    changed = applied(state, assignment("a", rate=2)).assignments["a"].declared
    assert isinstance(changed, GlobalConfig)
    assert changed.renderer > 0


def test_pending_rollout_restarts_when_its_approval_rules_change() -> None:
    state = applied(BASE, staged(1) + NEEDS)
    assert shown(applied(state, staged(1) + NEEDS)) == ("a-1", RolloutState.PENDING_APPROVAL)
    edited = applied(state, staged(1) + NEEDS.replace("needed: 1", "needed: 2"), by="eve")
    assert shown(edited) == ("a-2", RolloutState.PENDING_APPROVAL)
    pending = edited.assignments["a"].pending
    assert pending is not None
    assert pending.authors == ("eve", "ann")


def test_names_and_generations_are_never_reused() -> None:
    state = applied(BASE, staged(1) + NEEDS, on=terms(ONE_AGENT))
    made = revise(state, state.catalog.without("ConfigAssignment", "a"), terms(), by="ann", now_ms=9)
    assert [(r.name, r.state, r.reason) for r in made.rollouts] == [
        ("a-1", RolloutState.ABORTED, "its assignment was deleted")
    ]
    gone = made.change(None).state
    assert (dict(gone.assignments), gone.deleted_assignments) == ({}, {"a": (1, 0)})
    back = applied(gone, staged(2))
    assert (shown(back)[0], back.deleted_assignments) == ("a-2", {})


def test_deletion_does_not_end_an_ended_rollout_again() -> None:
    state = applied(BASE, assignment("a"))
    assert without(state).deleted_assignments == {"a": (1, 0)}


def test_rollout_to_a_yanked_package_ends() -> None:
    state = applied(with_package(BASE), package_assignment())
    state = applied(with_package(state, "2"), package_assignment("2", strategy="canary"), on=terms(ONE_AGENT))
    assert shown(state, "agents") == ("agents-2", RolloutState.RUNNING)
    ended = with_package(state, "2", yanked="crashes")
    assert latest(ended, "agents").reason == "package otelcol@2 was yanked"
    assert latest(ended, "agents").state is RolloutState.ABORTED
    calm = with_package(ended, "1", yanked="old")
    assert calm.assignments["agents"].stable is not None, "what is stable stays in force, and is offered to nobody"


def test_earlier_revisions_do_not_prevent_deletion() -> None:
    state = applied(BASE, assignment("a"), on=terms(ONE_AGENT))
    stable = dataclasses.replace(state.assignments["a"], earlier=tuple(state.assignments["a"].revisions[:1]))
    assert stable.earlier
    held = dataclasses.replace(state, assignments={"a": stable})
    second = "---" + TEMPLATE.replace("version: v1", "version: v2")
    moved = applied(held, second, assignment("a", version="v2"))
    assert moved.assignments["a"].earlier
    lost = revise(
        dataclasses.replace(moved, assignments={"a": dataclasses.replace(moved.assignments["a"], rollout=None)}),
        moved.catalog.without("ConfigTemplate", "basic@v1"),
        terms(),
        by="ann",
        now_ms=1,
    ).change(None)
    assert lost.state.assignments["a"].earlier == ()
    packages = applied(with_package(BASE), package_assignment())
    kept = dataclasses.replace(packages.assignments["agents"], earlier=tuple(packages.assignments["agents"].revisions))
    packages = dataclasses.replace(packages, assignments={"agents": kept})
    assert applied(packages, TEMPLATE).assignments["agents"].earlier


def test_unpublishable_resource_is_refused() -> None:
    fine = draft(BASE, assignment("a"))
    check_publishable(fine)
    state = fine.change(None).state
    made = draft(state, assignment("b", priority=1))
    broken = dataclasses.replace(made.assignments["b"], name="x" * 500)
    made.assignments["b"] = broken
    with pytest.raises(Refused, match="ConfigAssignment/b"):
        check_publishable(made)

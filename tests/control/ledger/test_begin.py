"""How changes go out: by which strategy, with whose approval, and whether they are over at once."""

import dataclasses

import pytest

from relay.control.ledger.begin import again, begin_if_approved, forgive, observes
from relay.control.ledger.draft import Draft
from relay.control.ledger.revise import expect_publishable
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.rollout import RolloutState, Way, at_once
from relay.policy.model import ConfigAssignment
from tests.conftest import TEMPLATE, assignment
from tests.control.ledger.made import (
    NEEDS,
    ONE_AGENT,
    applied,
    documents,
    draft,
    latest,
    shown,
    terms,
    waiting,
    with_package,
)
from tests.control.texts import TWO_STAGES, staged
from tests.packages import package_assignment

BASE = applied(State(), TEMPLATE, TWO_STAGES)


def approved(state: State, by: str = "bob", name: str = "a") -> State:
    """The state after somebody approved what waits."""
    rollout = waiting(state, name)
    made = Draft(state)
    given = plan.approve(rollout, by, rollout.digest, 2)
    begin_if_approved(made, state.assignments[name], given, terms(ONE_AGENT), 2)
    return made.change(None).state


def stages(state: State, name: str = "a") -> list[str]:
    held = state.assignments[name]
    newest = held.pending or held.rollout
    assert newest is not None
    return [stage.name for stage in newest.strategy.stages]


def test_without_a_strategy_it_goes_to_all_at_once() -> None:
    state = applied(BASE, assignment("a"), on=terms(ONE_AGENT))
    assert shown(state) == ("a-1", RolloutState.RUNNING)
    assert (latest(state).at_once, latest(state).way, latest(state).on_failure) == (True, Way.SETTINGS, "rollback")
    cautious = applied(BASE, assignment("a"), on=terms(ONE_AGENT, rollback_on_error=False))
    assert latest(cautious).on_failure == "pause"


def test_what_is_for_nobody_is_over_at_once() -> None:
    state = applied(BASE, assignment("a"))
    assert (latest(state).state, latest(state).reason) == (
        RolloutState.COMPLETED,
        "it matched no known agent",
    )
    state = applied(state, staged(1, priority=7))
    assert latest(state).reason == "it changes nothing for any known agent"
    assert shown(applied(state, staged(2))) == ("a-3", RolloutState.RUNNING), "its first agent may come any moment"


def test_back_to_the_stable_revision_is_over_at_once() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    back = applied(state, staged(1), on=terms(ONE_AGENT))
    assert latest(back).reason == "back to the stable revision"


def test_packages_that_are_fetched_first_begin_with_nobody() -> None:
    state = applied(with_package(BASE), package_assignment(prefetch="true", strategy="canary"), on=terms(ONE_AGENT))
    assert latest(state, "agents").thresholds == {}
    at_once_too = applied(with_package(BASE), package_assignment(strategy="canary"), on=terms(ONE_AGENT))
    assert any(latest(at_once_too, "agents").thresholds.values())


def test_packages_for_other_agents_are_the_same_packages() -> None:
    state = applied(with_package(BASE), package_assignment())
    moved = applied(state, package_assignment(priority="3", strategy="canary"))
    assert latest(moved, "agents").reason == "it changes nothing for any known agent"


def test_an_edit_cannot_take_its_own_approval_away() -> None:
    state = applied(applied(BASE, assignment("a")), assignment("a", rate=2) + NEEDS, by="eve")
    assert shown(state) == ("a-2", RolloutState.PENDING_APPROVAL)
    stripped = applied(state, assignment("a", rate=2), by="eve")
    assert (shown(stripped), waiting(stripped).needed) == (("a-3", RolloutState.PENDING_APPROVAL), 1)
    with pytest.raises(Exception, match="somebody else"):
        approved(stripped, "eve")
    done = approved(stripped)
    assert shown(done) == ("a-3", RolloutState.RUNNING)
    free = applied(done, assignment("a", rate=3), by="eve")
    assert free.assignments["a"].pending is None, "its approved documents ask for none any more"


def test_an_approval_that_was_only_ever_asked_for_is_needed_all_the_same() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2) + NEEDS, by="eve")
    for rate in (2, 3):
        state = applied(state, assignment("a", rate=rate), by="eve")
        state = applied(state, assignment("b", rate=rate, priority=1), by="eve")
        assert (shown(state)[1], stages(state)) == (RolloutState.PENDING_APPROVAL, ["canary", "all"])


def test_the_settings_may_ask_for_approvals_too() -> None:
    rules = terms(approval_required=True, approvals_needed=2, four_eyes=True)
    state = applied(BASE, assignment("a"), on=rules)
    assert waiting(state).asked == (2, True)
    own = applied(BASE, assignment("a") + "  approval: {required: false, four_eyes: false}\n", on=rules)
    assert latest(own).asked == (0, False)


def test_a_newer_change_takes_the_place_of_one_that_waits_and_supersedes_one_that_is_out() -> None:
    out = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    made = draft(applied(out, staged(3) + NEEDS, on=terms(ONE_AGENT)), staged(4) + NEEDS, on=terms(ONE_AGENT))
    assert [(r.name, r.state) for r in made.rollouts] == [
        ("a-3", RolloutState.SUPERSEDED),
        ("a-4", RolloutState.PENDING_APPROVAL),
    ]
    begun = approved(made.change(None).state)
    assert [layer.name for layer in begun.assignments["a"].layers] == ["a-2"]
    assert begun.assignments["a"].layers[0].state is RolloutState.SUPERSEDED


def test_observing_waits_for_approval_and_what_was_observed_is_at_nobody() -> None:
    state = applied(BASE, assignment("a") + "  observe_only: true\n")
    assert latest(state).reason == "it is only observed"
    assert (state.assignments["a"].observe_only, state.assignments["a"].in_force) == (True, [])
    state = applied(state, staged(1) + NEEDS, by="eve")
    assert state.assignments["a"].in_force == [], "nobody gets it before it is approved"
    state = approved(state)
    assert (state.assignments["a"].observe_only, state.assignments["a"].stable) == (False, None)
    assert shown(state) == ("a-2", RolloutState.RUNNING)


def test_who_observes() -> None:
    watching, giving, packages = documents(
        assignment("a") + "  observe_only: true\n", assignment("b"), package_assignment()
    )
    assert isinstance(watching, ConfigAssignment)
    assert observes(watching)
    assert isinstance(giving, ConfigAssignment)
    assert not observes(giving)
    assert not observes(packages)  # type: ignore[arg-type]


def test_a_strategy_that_was_given_up_holds_until_a_change_has_gone_out_by_it() -> None:
    state = applied(BASE, staged(1))
    state = applied(state, assignment("a", rate=1))
    state = applied(state, assignment("a", rate=2), on=terms(ONE_AGENT))
    assert (stages(state), latest(state).way) == (["canary", "all"], Way.KEPT)
    done = dataclasses.replace(latest(state), state=RolloutState.COMPLETED)
    held = {"a": state.assignments["a"].after(done)}
    state = applied(dataclasses.replace(state, assignments=held), assignment("a", rate=3))
    assert stages(state) == ["all"], "a change has gone out by it"


def test_a_change_that_gives_up_its_strategy_keeps_it_whatever_else_is_applied() -> None:
    state = applied(applied(BASE, staged(1)), assignment("a", rate=2) + NEEDS, by="eve")
    assert (stages(state), waiting(state).way) == (["canary", "all"], Way.KEPT)
    state = applied(state, assignment("b", rate=9, priority=1), by="eve")
    assert waiting(state).name == "a-2", "it was not planned again"
    state = applied(state, assignment("a", rate=3) + NEEDS, by="eve")
    assert stages(state) == ["canary", "all"]
    rejected = plan.reject(waiting(state), "no", 1)
    state = dataclasses.replace(state, assignments={"a": state.assignments["a"].after(rejected)})
    assert stages(applied(state, assignment("a", rate=4))) == ["canary", "all"], "none has gone out by it yet"


def test_retries_count_on_over_all_assignments_also_those_that_are_gone() -> None:
    state = applied(BASE, assignment("a"), assignment("b", priority=1))
    made = Draft(dataclasses.replace(state, gone={"c": (3, 4)}))
    assert (forgive(made, "a"), forgive(made, "b")) == (5, 6)
    assert {name: held.retry for name, held in made.assignments.items()} == {"a": 5, "b": 6}


def test_beginning_anew_goes_by_the_rules_of_today() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    ended = plan.abort(latest(state), "no", 1)
    state = dataclasses.replace(state, assignments={"a": state.assignments["a"].after(ended)})
    state = applied(state, staged(2) + NEEDS, by="boss")
    made = Draft(state)
    begun = again(made, "a", ("eve", "ann"), terms(ONE_AGENT), 5)
    assert (begun.state, begun.authors) == (RolloutState.PENDING_APPROVAL, ("eve", "ann"))


def test_the_settings_own_strategy() -> None:
    strict = at_once(0.5)
    state = applied(BASE, assignment("a"), on=terms(ONE_AGENT, strategy=strict, at_once=False))
    assert (latest(state).strategy, latest(state).at_once) == (strict, False)


def test_the_longest_name_can_be_rolled_out() -> None:
    name = "n" * 128
    made = draft(BASE, staged(1, name=name))
    expect_publishable(made)
    assert shown(made.change(None).state, name)[0] == f"{name}-1"

"""How changes begin: their strategy, their approvals, and whether they complete at once."""

import dataclasses

import pytest

from relay.control.ledger.begin import again, begin_if_approved, forgive, observes
from relay.control.ledger.draft import Draft
from relay.control.ledger.revise import check_publishable
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
    """The state after the pending rollout is approved."""
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


def test_change_without_a_strategy_goes_to_all_at_once() -> None:
    state = applied(BASE, assignment("a"), on=terms(ONE_AGENT))
    assert shown(state) == ("a-1", RolloutState.RUNNING)
    assert (latest(state).at_once, latest(state).way, latest(state).on_failure) == (True, Way.SETTINGS, "rollback")
    cautious = applied(BASE, assignment("a"), on=terms(ONE_AGENT, rollback_on_error=False))
    assert latest(cautious).on_failure == "pause"


def test_change_that_affects_no_agent_completes_at_once() -> None:
    state = applied(BASE, assignment("a"))
    assert (latest(state).state, latest(state).reason) == (
        RolloutState.COMPLETED,
        "it matched no known agent",
    )
    state = applied(state, staged(1, priority=7))
    assert latest(state).reason == "it changes nothing for any known agent"
    assert shown(applied(state, staged(2))) == ("a-3", RolloutState.RUNNING), "its first agent may come any moment"


def test_return_to_the_stable_revision_completes_at_once() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    back = applied(state, staged(1), on=terms(ONE_AGENT))
    assert latest(back).reason == "back to the stable revision"


def test_prefetched_packages_begin_with_no_agents() -> None:
    state = applied(with_package(BASE), package_assignment(prefetch="true", strategy="canary"), on=terms(ONE_AGENT))
    assert latest(state, "agents").thresholds == {}
    at_once_too = applied(with_package(BASE), package_assignment(strategy="canary"), on=terms(ONE_AGENT))
    assert any(latest(at_once_too, "agents").thresholds.values())


def test_selector_change_of_packages_keeps_the_packages() -> None:
    state = applied(with_package(BASE), package_assignment())
    moved = applied(state, package_assignment(priority="3", strategy="canary"))
    assert latest(moved, "agents").reason == "it changes nothing for any known agent"


def test_edit_cannot_remove_its_own_approval() -> None:
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


def test_approval_that_was_never_given_is_still_needed() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2) + NEEDS, by="eve")
    for rate in (2, 3):
        state = applied(state, assignment("a", rate=rate), by="eve")
        state = applied(state, assignment("b", rate=rate, priority=1), by="eve")
        assert (shown(state)[1], stages(state)) == (RolloutState.PENDING_APPROVAL, ["canary", "all"])


def test_settings_may_require_approvals() -> None:
    rules = terms(approval_required=True, approvals_needed=2, four_eyes=True)
    state = applied(BASE, assignment("a"), on=rules)
    assert waiting(state).asked == (2, True)
    own = applied(BASE, assignment("a") + "  approval: {required: false, four_eyes: false}\n", on=rules)
    assert latest(own).asked == (0, False)


def test_newer_change_replaces_pending_and_supersedes_running() -> None:
    out = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    made = draft(applied(out, staged(3) + NEEDS, on=terms(ONE_AGENT)), staged(4) + NEEDS, on=terms(ONE_AGENT))
    assert [(r.name, r.state) for r in made.rollouts] == [
        ("a-3", RolloutState.SUPERSEDED),
        ("a-4", RolloutState.PENDING_APPROVAL),
    ]
    begun = approved(made.change(None).state)
    assert [layer.name for layer in begun.assignments["a"].layers] == ["a-2"]
    assert begun.assignments["a"].layers[0].state is RolloutState.SUPERSEDED


def test_ending_observation_needs_approval_and_has_no_stable_revision() -> None:
    state = applied(BASE, assignment("a") + "  observe_only: true\n")
    assert latest(state).reason == "it is only observed"
    assert (state.assignments["a"].observe_only, state.assignments["a"].in_force) == (True, [])
    state = applied(state, staged(1) + NEEDS, by="eve")
    assert state.assignments["a"].in_force == [], "nobody gets it before it is approved"
    state = approved(state)
    assert (state.assignments["a"].observe_only, state.assignments["a"].stable) == (False, None)
    assert shown(state) == ("a-2", RolloutState.RUNNING)


def test_observes() -> None:
    watching, giving, packages = documents(
        assignment("a") + "  observe_only: true\n", assignment("b"), package_assignment()
    )
    assert isinstance(watching, ConfigAssignment)
    assert observes(watching)
    assert isinstance(giving, ConfigAssignment)
    assert not observes(giving)
    assert not observes(packages)  # type: ignore[arg-type]


def test_removed_strategy_applies_to_one_more_change() -> None:
    state = applied(BASE, staged(1))
    state = applied(state, assignment("a", rate=1))
    state = applied(state, assignment("a", rate=2), on=terms(ONE_AGENT))
    assert (stages(state), latest(state).way) == (["canary", "all"], Way.KEPT)
    done = dataclasses.replace(latest(state), state=RolloutState.COMPLETED)
    held = {"a": state.assignments["a"].after(done)}
    state = applied(dataclasses.replace(state, assignments=held), assignment("a", rate=3))
    assert stages(state) == ["all"], "a change has gone out by it"


def test_change_that_removes_its_strategy_keeps_using_it() -> None:
    state = applied(applied(BASE, staged(1)), assignment("a", rate=2) + NEEDS, by="eve")
    assert (stages(state), waiting(state).way) == (["canary", "all"], Way.KEPT)
    state = applied(state, assignment("b", rate=9, priority=1), by="eve")
    assert waiting(state).name == "a-2", "it was not planned again"
    state = applied(state, assignment("a", rate=3) + NEEDS, by="eve")
    assert stages(state) == ["canary", "all"]
    rejected = plan.reject(waiting(state), "no", 1)
    state = dataclasses.replace(state, assignments={"a": state.assignments["a"].after(rejected)})
    assert stages(applied(state, assignment("a", rate=4))) == ["canary", "all"], "none has gone out by it yet"


def test_retry_numbers_continue_across_deleted_assignments() -> None:
    state = applied(BASE, assignment("a"), assignment("b", priority=1))
    made = Draft(dataclasses.replace(state, deleted_assignments={"c": (3, 4)}))
    assert (forgive(made, "a"), forgive(made, "b")) == (5, 6)
    assert {name: held.retry for name, held in made.assignments.items()} == {"a": 5, "b": 6}


def test_restart_uses_the_current_rules() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    ended = plan.abort(latest(state), "no", 1)
    state = dataclasses.replace(state, assignments={"a": state.assignments["a"].after(ended)})
    state = applied(state, staged(2) + NEEDS, by="boss")
    made = Draft(state)
    begun = again(made, "a", ("eve", "ann"), terms(ONE_AGENT), 5)
    assert (begun.state, begun.authors) == (RolloutState.PENDING_APPROVAL, ("eve", "ann"))


def test_strategy_from_settings() -> None:
    strict = at_once(0.5)
    state = applied(BASE, assignment("a"), on=terms(ONE_AGENT, strategy=strict, at_once=False))
    assert (latest(state).strategy, latest(state).at_once) == (strict, False)


def test_longest_name_can_be_rolled_out() -> None:
    name = "n" * 128
    made = draft(BASE, staged(1, name=name))
    check_publishable(made)
    assert shown(made.change(None).state, name)[0] == f"{name}-1"

import dataclasses

from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import RolloutState
from relay.policy.published import CONFIG
from tests.control.rollouts.made import revision, rollout


def test_draft_takes_effect_only_in_its_change() -> None:
    before = State(contents={"RegionVariables/eu@1": b"1"})
    draft = Draft(before, contents={"RegionVariables/eu@2": b"2", "RegionVariables/us@1": b"3"})
    pinned = AssignmentState("a", CONFIG, stable=revision(1, variables={"eu": "eu@2"}))
    draft.assignments["a"] = pinned
    assert (before.assignments, draft.state.assignments["a"]) == ({}, pinned)
    assert set(draft.state.contents) == {"RegionVariables/eu@1", "RegionVariables/eu@2", "RegionVariables/us@1"}
    change = draft.change("done")
    assert change.result == "done"
    assert change.state.contents == {"RegionVariables/eu@2": b"2"}, "what nobody pins is left out"
    assert change.state.catalog is before.catalog


def test_earlier_revisions_are_pinned() -> None:
    draft = Draft(State(contents={"RegionVariables/eu@1": b"1"}))
    draft.assignments["a"] = AssignmentState("a", CONFIG, earlier=(revision(1, variables={"eu": "eu@1"}),))
    assert draft.change(None).state.contents == {"RegionVariables/eu@1": b"1"}


def test_rollout_appears_once_in_its_last_state_with_the_person_s_action_first() -> None:
    draft = Draft(State())
    other, first = rollout(name="b-1", assignment="b"), rollout()
    draft.add_step(other)
    draft.add_step(first)
    last = dataclasses.replace(first, state=RolloutState.COMPLETED)
    draft.add_step(last)
    assert draft.rollouts == [other, last]
    draft.record_action("a-2", first, "promote", "ann said so")
    step, rest = draft.change(None).steps
    assert (step.before, step.after, step.action, step.reason) == (first, last, "promote", "ann said so")
    assert (rest.after, rest.action) == (other, "")


def test_quiet_step_stays_quiet() -> None:
    draft = Draft(State())
    draft.add_step(rollout(), quiet=True)
    assert [step.quiet for step in draft.change(None).steps] == [True]

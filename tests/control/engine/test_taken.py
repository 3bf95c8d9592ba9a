import dataclasses

from relay.control.engine.taken import Taken
from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import RolloutState
from relay.observe.metrics import ControlPlaneMetrics
from relay.policy.published import CONFIG
from tests.control.actors import ANN
from tests.control.rollouts.made import revision, rollout

BEFORE = rollout()
PAUSED = dataclasses.replace(BEFORE, state=RolloutState.PAUSED)
HELD = State(assignments={"a": AssignmentState("a", CONFIG, stable=revision(1), rollout=BEFORE)})


def test_step_is_in_the_next_state() -> None:
    change = Taken(BEFORE, PAUSED, "pause", "lunch").change(HELD)
    assert change.state.assignments["a"].rollout == PAUSED
    (step,) = change.steps
    assert (step.before, step.after, step.action, step.reason) == (BEFORE, PAUSED, "pause", "lunch")


def test_step_already_in_the_draft_includes_other_steps() -> None:
    draft = Draft(HELD)
    other = rollout(name="b-1", assignment="b")
    draft.add_step(other)
    draft.add_step(PAUSED)
    assert [step.after.name for step in Taken(BEFORE, PAUSED, "pause").change(HELD, draft).steps] == ["a-2", "b-1"]


def test_only_state_changes_are_counted() -> None:
    metrics = ControlPlaneMetrics()
    Taken(BEFORE, PAUSED).tell(ANN, metrics)
    Taken(BEFORE, dataclasses.replace(BEFORE, stage=1)).tell(ANN, metrics)
    assert metrics.rollout_steps == {"paused": 1}

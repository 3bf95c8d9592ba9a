import dataclasses

from relay.control.ledger.change import Change, Entry, Step
from relay.control.ledger.state import State
from relay.control.rollouts.rollout import RolloutState
from tests.control.rollouts.made import rollout


def test_step_derives_its_audit_entry() -> None:
    before = rollout()
    after = rollout(state=RolloutState.PAUSED, reason="by hand", stage=1)
    assert Step(after).entry == Entry("paused", "Rollout/a-2", "", "paused:1:dddddddddddddddd", "by hand")
    told = Step(after, before, action="pause", reason="ann said so").entry
    assert told == Entry(
        "pause", "Rollout/a-2", "running:0:dddddddddddddddd", "paused:1:dddddddddddddddd", "ann said so"
    )


def test_change_that_changes_nothing() -> None:
    state = State()
    assert Change(state, "unchanged").is_nothing_to(state)
    assert not Change(dataclasses.replace(state, epoch=2), None).is_nothing_to(state)
    assert not Change(state, None, steps=[Step(rollout())]).is_nothing_to(state)
    assert not Change(state, None, entries=[Entry("forget", "Node/eu/one")]).is_nothing_to(state)

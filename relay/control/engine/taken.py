"""A step of a rollout, automatic or by a user. Both enter the ledger this way."""

from __future__ import annotations

from typing import NamedTuple

from relay.control.access.actor import Actor
from relay.control.ledger.change import Change
from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts.rollout import Rollout
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics

_log = log.get("opamp-relay.rollouts")


class Taken(NamedTuple):
    """A step of a rollout."""

    before: Rollout
    after: Rollout
    action: str = ""
    """The name of the action in the audit log; empty if the new state says enough."""
    reason: str = ""

    def change(self, state: State, draft: Draft | None = None) -> Change[Taken]:
        """The step as a change of the ledger.

        Args:
            draft: a draft that already has the step and its consequences.
        """
        if draft is None:
            draft = Draft(state)
            draft.assignments[self.after.assignment] = state.assignments[self.after.assignment].after(self.after)
            draft.add_step(self.after, self.before)
        draft.record_action(self.after.name, self.before, self.action, self.reason)
        return draft.change(self)

    def tell(self, by: Actor, metrics: ControlPlaneMetrics) -> None:
        """Log and count the step, once it is stored."""
        if self.after.state is not self.before.state:
            metrics.rollout_steps[self.after.state.value] += 1
        _log.info(
            "rollout",
            rollout=self.after.name,
            state=self.after.state.value,
            stage=self.after.stage,
            actor=by.identity,
            reason=self.reason,
        )

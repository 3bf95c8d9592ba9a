"""A step that a rollout takes, by itself or because somebody said so: one way into the ledger for both."""

from __future__ import annotations

from typing import NamedTuple

from relay.control.ledger.change import Change
from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts.rollout import Rollout
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics

_log = log.get("opamp-relay.rollouts")


class Taken(NamedTuple):
    """One step."""

    before: Rollout
    after: Rollout
    action: str = ""
    """In the audit's words; empty: the new state says it."""
    reason: str = ""

    def change(self, state: State, draft: Draft | None = None) -> Change[Taken]:
        """As a change of the state.

        Args:
            draft: where the step is taken already, with what else follows.
        """
        if draft is None:
            draft = Draft(state)
            draft.assignments[self.after.assignment] = state.assignments[self.after.assignment].after(self.after)
            draft.take(self.after, self.before)
        draft.say(self.after.name, self.before, self.action, self.reason)
        return draft.change(self)

    def tell(self, by: str, metrics: ControlPlaneMetrics) -> None:
        """It is in force: say so in the log, and count it."""
        if self.after.state is not self.before.state:
            metrics.rollout_steps[self.after.state.value] += 1
        _log.info(
            "rollout",
            rollout=self.after.name,
            state=self.after.state.value,
            stage=self.after.stage,
            actor=by,
            reason=self.reason,
        )

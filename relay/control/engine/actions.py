"""User actions on rollouts. Each is one change of the ledger, computed from its state at that moment."""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum

from relay.control.access.actor import Actor
from relay.control.engine.look import Survey
from relay.control.engine.taken import Taken
from relay.control.ledger.begin import Terms, again, begin_if_approved, forgive
from relay.control.ledger.change import Change
from relay.control.ledger.draft import Draft
from relay.control.ledger.history import History, find
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.counts import Gate, Verdict
from relay.control.rollouts.rollout import ACTIVE, GOING, Rollout, RolloutState
from relay.errors import Conflict, NotFound
from relay.observe.metrics import ControlPlaneMetrics


class Action(StrEnum):
    """Actions on a rollout, apart from approve and retry."""

    REJECT = "reject"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    ABORT = "abort"


class Actions:
    """Performs actions. Each method returns the name of the resulting rollout."""

    def __init__(
        self, ledger: Ledger, history: History, survey: Survey, terms: Terms, *, metrics: ControlPlaneMetrics
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._survey = survey
        self._terms = terms
        self._metrics = metrics

    async def approve(self, name: str, actor: Actor, digest: str) -> str:
        """Approve a change. It begins once it has all approvals it needs.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it needs no approval, or this one is not accepted.
        """
        taken = await self._ledger.change(
            actor, lambda state, now_ms: self._approved(state, name, actor.identity, digest, now_ms)
        )
        taken.tell(actor, self._metrics)
        return taken.before.name

    def _approved(self, state: State, name: str, actor: str, digest: str, now_ms: int) -> Change[Taken]:
        assignment, before = find(state, name)
        approved = plan.approve(before, actor, digest, now_ms)
        draft = Draft(state)
        after = begin_if_approved(draft, assignment, approved, self._terms, now_ms)
        reason = f"{len(approved.approvals)} of {approved.needed}"
        return Taken(before, after, "approve", reason).change(state, draft)

    async def act(
        self, name: str, action: Action | str, actor: Actor, *, reason: str = "", stage: int | None = None
    ) -> str:
        """Reject, pause, resume, promote, roll back or abort.

        Raises:
            NotFound: there is no such rollout, or it is over.
            Conflict: its state does not allow the action.
        """
        why = reason or "no reason given"

        def make(state: State, now_ms: int) -> Change[Taken]:
            _, before = find(state, name)
            after = self._after(state, before, Action(action), actor.identity, why, stage, now_ms)
            return Taken(before, after, action, why).change(state)

        taken = await self._ledger.change(actor, make)
        taken.tell(actor, self._metrics)
        return taken.before.name

    def _after(
        self, state: State, before: Rollout, action: Action, actor: str, why: str, stage: int | None, now_ms: int
    ) -> Rollout:
        match action:
            case Action.REJECT:
                return plan.reject(before, why, now_ms)
            case Action.PAUSE:
                return plan.pause(before, why)
            case Action.RESUME:
                return plan.resume(before)
            case Action.PROMOTE:
                if stage is None:
                    raise Conflict("to promote, name the stage: if two people promote at once, the second is refused")
                look = self._survey.look(before, state)
                return plan.promote(before, stage, f"promoted by {actor}: {why}", look.regions, look.goals, now_ms)
            case Action.ROLLBACK:
                return plan.roll_back(self._recorded(state, before, why, now_ms), why)
            case Action.ABORT:
                return plan.abort(self._recorded(state, before, why, now_ms), why, now_ms)

    def _recorded(self, state: State, rollout: Rollout, why: str, now_ms: int) -> Rollout:
        """Return the rollout with the result of its current stage recorded."""
        if rollout.state not in GOING:
            return rollout
        # The last look will do, however old: a rollback should not wait for another one.
        look = self._survey.last_look(rollout, state, math.inf)
        return plan.recorded(rollout, Gate(Verdict.FAIL, why), look.regions, now_ms)

    async def retry(self, name: str, actor: Actor) -> str:
        """Forgive failures: offer the candidate again to agents that failed, or start a new rollout of it.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it cannot be tried again.
        """
        # It may end, or its assignment may be deleted, before the ledger is locked, so it is looked up again then.
        stored = await self._history.get(name)
        taken = await self._ledger.change(
            actor, lambda state, now_ms: self._retried(state, stored, actor.identity, now_ms)
        )
        taken.tell(actor, self._metrics)
        return taken.after.name

    def _retried(self, state: State, stored: Rollout, actor: str, now_ms: int) -> Change[Taken]:
        assignment = state.assignments.get(stored.assignment)
        if assignment is None:
            raise NotFound(f"{stored.name} belongs to assignment {stored.assignment}, which was deleted")
        current = (r for r in (assignment.pending, assignment.rollout) if r is not None and r.name == stored.name)
        before = next(current, stored)
        draft = Draft(state)
        retry = forgive(draft, assignment.name)
        is_current = assignment.rollout is not None and assignment.rollout.name == before.name
        if is_current and (before.state in GOING or before.state is RolloutState.COMPLETED):
            after = plan.try_again(before, now_ms) if before.state in GOING else before
            forgiven = draft.assignments[assignment.name]
            draft.assignments[assignment.name] = dataclasses.replace(forgiven, rollout=after)
            draft.add_step(after, before)
        else:
            _check_restart(state, assignment, before)
            after = again(draft, assignment.name, (actor, *before.authors), self._terms, now_ms)
        return Taken(before, after, "retry", f"retry generation {retry}").change(state, draft)


def _check_restart(state: State, assignment: AssignmentState, rollout: Rollout) -> None:
    """Raise Conflict unless the rollout is over and its assignment still asks for its candidate."""
    if rollout.state in ACTIVE:
        raise Conflict(f"{rollout.name} is {rollout.state.value.replace('_', ' ')}; it cannot be tried again now")
    if rollout.candidate != assignment.declared:
        raise Conflict(f"{rollout.name} is no longer what {assignment.kind} {assignment.name} asks for")
    if yanked := state.catalog.yanked & rollout.candidate.versions:
        raise Conflict(f"package {', '.join(sorted(yanked))} was yanked; assign another version")

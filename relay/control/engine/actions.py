"""What people do to rollouts. Each action is one change of the ledger, made of what it holds at that instant."""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum

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
    """What can be done to a rollout beside approving it and trying again."""

    REJECT = "reject"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    ABORT = "abort"


class Actions:
    """Does it, and gives the name of the rollout that it led to."""

    def __init__(
        self, ledger: Ledger, history: History, survey: Survey, terms: Terms, *, metrics: ControlPlaneMetrics
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._survey = survey
        self._terms = terms
        self._metrics = metrics

    async def approve(self, name: str, actor: str, digest: str) -> str:
        """Approve a change; it begins when it has the approvals that it needs.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it needs no approval, or not this one.
        """
        taken = await self._ledger.change(
            actor, lambda state, now_ms: self._approved(state, name, actor, digest, now_ms)
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
        self, name: str, action: Action | str, actor: str, *, reason: str = "", stage: int | None = None
    ) -> str:
        """Reject, pause, resume, promote, roll back or abort.

        Raises:
            NotFound: there is no such rollout, or it is over.
            Conflict: that cannot be done to it now.
        """
        why = reason or "no reason given"

        def make(state: State, now_ms: int) -> Change[Taken]:
            _, before = find(state, name)
            after = self._after(state, before, Action(action), actor, why, stage, now_ms)
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
                    raise Conflict("to promote, name the stage: then of two people who promote at once, one is refused")
                seen = self._survey.look(before, state)
                return plan.promote(before, stage, f"promoted by {actor}: {why}", seen.regions, seen.goals, now_ms)
            case Action.ROLLBACK:
                return plan.roll_back(self._recorded(state, before, why, now_ms), why)
            case Action.ABORT:
                return plan.abort(self._recorded(state, before, why, now_ms), why, now_ms)

    def _recorded(self, state: State, rollout: Rollout, why: str, now_ms: int) -> Rollout:
        """With what its stage came to: that is worth more than that it is over."""
        if rollout.state not in GOING:
            return rollout
        # The last look will do, however old: who takes something back should not wait for another one.
        seen = self._survey.last_look(rollout, state, math.inf)
        return plan.recorded(rollout, Gate(Verdict.FAIL, why), seen.regions, now_ms)

    async def retry(self, name: str, actor: str) -> str:
        """Forgive failures: offer the candidate again to those that failed, or begin anew what was given up.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it cannot be tried again.
        """
        # It may end, or its assignment go, until the ledger is ours: it is looked for again then.
        stored = await self._history.get(name)
        taken = await self._ledger.change(actor, lambda state, now_ms: self._retried(state, stored, actor, now_ms))
        taken.tell(actor, self._metrics)
        return taken.after.name

    def _retried(self, state: State, stored: Rollout, actor: str, now_ms: int) -> Change[Taken]:
        assignment = state.assignments.get(stored.assignment)
        if assignment is None:
            raise NotFound(f"{stored.name} is of assignment {stored.assignment}, which was deleted")
        known = (r for r in (assignment.pending, assignment.rollout) if r is not None and r.name == stored.name)
        before = next(known, stored)
        draft = Draft(state)
        retry = forgive(draft, assignment.name)
        going_on = assignment.rollout is not None and assignment.rollout.name == before.name
        if going_on and (before.state in GOING or before.state is RolloutState.COMPLETED):
            after = plan.try_again(before, now_ms) if before.state in GOING else before
            forgiven = draft.assignments[assignment.name]
            draft.assignments[assignment.name] = dataclasses.replace(forgiven, rollout=after)
            draft.take(after, before)
        else:
            _expect_wanted(state, assignment, before)
            after = again(draft, assignment.name, (actor, *before.authors), self._terms, now_ms)
        return Taken(before, after, "retry", f"retry generation {retry}").change(state, draft)


def _expect_wanted(state: State, assignment: AssignmentState, rollout: Rollout) -> None:
    """Only what is over, and what its assignment still asks for, can begin anew."""
    if rollout.state in ACTIVE:
        raise Conflict(f"{rollout.name} is {rollout.state.value.replace('_', ' ')}; it cannot be tried again now")
    if rollout.candidate != assignment.declared:
        raise Conflict(f"{rollout.name} is no longer what {assignment.kind} {assignment.name} asks for")
    if gone := state.catalog.yanked & rollout.candidate.versions:
        raise Conflict(f"package {', '.join(sorted(gone))} was yanked; assign another version")

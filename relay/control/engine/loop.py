"""The rollout loop: it looks at the fleet and takes the steps that follow.

Each step is stored, with its audit entry and notices, before anything acts on it. After a crash the loop continues from
the stored state.
"""

from __future__ import annotations

import asyncio
import dataclasses

from relay.aio.clock import Clock
from relay.control.access.actor import SYSTEM
from relay.control.engine.look import Survey, position
from relay.control.engine.taken import Taken
from relay.control.ledger.change import Change
from relay.control.ledger.draft import Draft
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.counts import Look
from relay.control.rollouts.rollout import Rollout, RolloutState
from relay.control.rollouts.soak import Confirmations, Soak
from relay.errors import StoreError
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics

_log = log.get("opamp-relay.rollouts")
_SETTLE_S = 30.0
_MAX_PAUSE_S = 15.0
_MAX_PAUSES = 3
"""The most to count for the time between two looks, in pauses: nobody observes while the control plane is down."""
_STEPPING = frozenset({RolloutState.RUNNING, RolloutState.HELD, RolloutState.ROLLING_BACK})


class Loop:
    """Steps all rollouts.

    Args:
        soak: how long stages were observed. The loop updates it; others may read it.
    """

    def __init__(
        self, ledger: Ledger, survey: Survey, soak: Soak, *, clock: Clock, metrics: ControlPlaneMetrics
    ) -> None:
        self._ledger = ledger
        self._survey = survey
        self._soak = soak
        self._clock = clock
        self._metrics = metrics
        self._began = clock.monotonic()
        self._looked_s = 0.0
        """How long the last looks took, without waiting for the database."""
        self._pause_s = _MAX_PAUSE_S
        """The pause between two rounds of looks."""
        self._confirmations = Confirmations()

    async def run(self, every_s: float) -> None:
        """Look and step until cancelled. With many agents the pauses grow, so that looks take a tenth of the time."""
        while True:
            self._pause_s = min(max(every_s, 9 * self._looked_s), _MAX_PAUSE_S)
            await asyncio.sleep(self._pause_s)
            self._looked_s = 0.0
            try:
                await self.tick()
            except StoreError as error:
                _log.error("rollouts_not_stored", error=str(error))
            except Exception:
                _log.exception("rollouts_failed")  # the loop must go on

    async def tick(self) -> None:
        """Look at every active rollout once and take the steps that follow.

        Raises:
            StoreError: a step could not be stored.
        """
        for name, assignment in self._ledger.state.assignments.items():
            if assignment.rollout is None or assignment.rollout.state not in _STEPPING:
                continue
            try:
                await self.step(name)
            except StoreError:
                raise
            except Exception:
                # An error in one rollout must not stop all others.
                _log.exception("rollout_failed", assignment=name)
            await asyncio.sleep(0)
        assignments = self._ledger.state.assignments.values()
        names = [a.rollout.name for a in assignments if a.rollout is not None]
        self._soak.forget_others(names)
        self._survey.forget_others(names)

    async def step(self, name: str) -> None:
        """Look at the rollout of one assignment, and take the step that follows.

        Raises:
            StoreError: the step could not be stored.
        """
        state = self._ledger.state
        assignment = state.assignments.get(name)
        if assignment is None or assignment.rollout is None or assignment.rollout.state not in _STEPPING:
            return
        # In a thread, and before the ledger is locked: a look at a million agents takes seconds.
        rollout, began = assignment.rollout, self._clock.monotonic()
        look = await asyncio.to_thread(self._survey.look, rollout, state)
        self._looked_s += self._clock.monotonic() - began

        def make(state: State, now_ms: int) -> Change[Taken | Rollout | None]:
            return self._stepped(state, name, rollout, look, began, now_ms)

        result = await self._ledger.change(SYSTEM, make)
        if isinstance(result, Taken):
            result.tell(SYSTEM, self._metrics)
        elif result is not None:
            self._soak.mark_stored(result.name)

    def _stepped(
        self, state: State, name: str, rollout: Rollout, look: Look, at: float, now_ms: int
    ) -> Change[Taken | Rollout | None]:
        """Return the change for one assignment: a step, a rollout whose observed time is stored, or nothing.

        Args:
            rollout: the rollout that was looked at. If it has changed since, nothing is done until the next look.
            look: the look at it.
            at: when the look began, by the monotonic clock.
        """
        nothing: Change[Taken | Rollout | None] = Change(state, None)
        assignment = state.assignments.get(name)
        stored = assignment.rollout if assignment is not None else None
        if assignment is None or stored is None or stored.name != rollout.name or position(stored) != position(rollout):
            return nothing
        before = self._observed(stored, at)
        if self._clock.monotonic() - self._began < _SETTLE_S and not all(r.connected for r in look.regions.values()):
            return nothing  # just after the start, healthy regions have yet to reconnect
        hold_reason = self._survey.prefetch_obstacle(before, look, state)
        after = plan.hold(before, hold_reason) if hold_reason else plan.step(before, look.regions, look.goals, now_ms)
        if self._lacks_confirmation(before, after, look):
            return nothing
        if after is not before:
            return Taken(before, after, "advance" if after.stage != before.stage else "", after.reason).change(state)
        if self._soak.is_due(before.name):
            draft = Draft(state)
            draft.assignments[name] = assignment.after(before)
            draft.add_step(before, stored, quiet=True)
            return draft.change(before)
        return nothing

    def _lacks_confirmation(self, before: Rollout, after: Rollout, look: Look) -> bool:
        """Whether a gate would pass on reports that may be out of date."""
        passes = after.stage > before.stage or (
            after.state is RolloutState.COMPLETED and before.state is not RolloutState.COMPLETED
        )
        if not passes or before.at_once:
            self._confirmations.forget(before.name)
            return False
        if not self._confirmations.is_confirmed(before.name, before.stage, look.heard_at, self._clock.monotonic()):
            return True
        self._confirmations.forget(before.name)
        return False

    def _observed(self, rollout: Rollout, now: float) -> Rollout:
        """Return the rollout with its observed time, including this look."""
        observed_s = self._soak.look(
            rollout.name,
            rollout.stage_started_ms,
            rollout.observed_s,
            now,
            most_s=_MAX_PAUSES * self._pause_s,
            counts=rollout.state in (RolloutState.RUNNING, RolloutState.HELD),
        )
        return dataclasses.replace(rollout, observed_s=observed_s)

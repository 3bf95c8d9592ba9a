"""Rollouts move: the loop looks at the fleet and takes the steps that follow.

Each step is stored, with its audit entry and its notices, before anything acts on it. After a kill at any instant the stored
state is the whole truth, and the next look at the fleet goes on from it.
"""

from __future__ import annotations

import asyncio
import dataclasses

from relay.aio.clock import Clock
from relay.control.engine.look import Survey, position
from relay.control.engine.taken import Taken
from relay.control.ledger import audit
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
_MOST_PAUSE_S = 15.0
_MOST_PAUSES = 3
"""Of the time between two looks, so many pauses count: while the control plane was down nobody looked."""
_STEPPING = frozenset({RolloutState.RUNNING, RolloutState.HELD, RolloutState.ROLLING_BACK})


class Loop:
    """Steps all rollouts.

    Args:
        soak: how long stages were looked at; others may read it.
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
        """How long the last looks took; waiting for the database is no part of it."""
        self._pause_s = _MOST_PAUSE_S
        """Between the last looks and the next."""
        self._confirmations = Confirmations()

    async def run(self, every_s: float) -> None:
        """Look and step until cancelled; with very many agents less often, so that looking takes a tenth of the time."""
        while True:
            self._pause_s = min(max(every_s, 9 * self._looked_s), _MOST_PAUSE_S)
            await asyncio.sleep(self._pause_s)
            self._looked_s = 0.0
            try:
                await self.tick()
            except StoreError as error:
                _log.error("rollouts_not_stored", error=str(error))
            except Exception:
                _log.exception("rollouts_failed")  # they must go on

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
                # Whatever it is, it must not stand in the way of all other rollouts.
                _log.exception("rollout_failed", assignment=name)
            await asyncio.sleep(0)
        assignments = self._ledger.state.assignments.values()
        names = [a.rollout.name for a in assignments if a.rollout is not None]
        self._soak.forget_others(names)
        self._survey.forget_others(names)

    async def step(self, name: str) -> None:
        """Look at the rollout of one assignment, and take the step that follows.

        Raises:
            StoreError: it could not be stored.
        """
        state = self._ledger.state
        assignment = state.assignments.get(name)
        if assignment is None or assignment.rollout is None or assignment.rollout.state not in _STEPPING:
            return
        # In a thread, and before the ledger is ours: to look at a million agents takes seconds.
        looked_at, began = assignment.rollout, self._clock.monotonic()
        seen = await asyncio.to_thread(self._survey.look, looked_at, state)
        self._looked_s += self._clock.monotonic() - began

        def make(state: State, now_ms: int) -> Change[Taken | Rollout | None]:
            return self._stepped(state, name, looked_at, seen, began, now_ms)

        done = await self._ledger.change(audit.SYSTEM, make)
        if isinstance(done, Taken):
            done.tell(audit.SYSTEM, self._metrics)
        elif done is not None:
            self._soak.kept(done.name)

    def _stepped(
        self, state: State, name: str, looked_at: Rollout, seen: Look, at: float, now_ms: int
    ) -> Change[Taken | Rollout | None]:
        """What follows for one assignment: a step, or a rollout of which is written down how long it was looked at.

        Args:
            looked_at: its rollout when it was looked at; what another one has become since is seen next time.
            seen: what was seen then.
            at: when that was, by the monotonic clock.
        """
        nothing: Change[Taken | Rollout | None] = Change(state, None)
        assignment = state.assignments.get(name)
        stored = assignment.rollout if assignment is not None else None
        if (
            assignment is None
            or stored is None
            or stored.name != looked_at.name
            or position(stored) != position(looked_at)
        ):
            return nothing
        before = self._looked_at(stored, at)
        if self._clock.monotonic() - self._began < _SETTLE_S and not all(r.connected for r in seen.regions.values()):
            return nothing  # we have just begun, and regions that are well have yet to come back to us
        lacking = self._survey.yet_to_fetch(before, seen, state)
        after = plan.hold(before, lacking) if lacking else plan.step(before, seen.regions, seen.goals, now_ms)
        if self._lacks_confirmation(before, after, seen):
            return nothing
        if after is not before:
            return Taken(before, after, "advance" if after.stage != before.stage else "", after.reason).change(state)
        if self._soak.is_due(before.name):
            draft = Draft(state)
            draft.assignments[name] = assignment.after(before)
            draft.take(before, stored, quiet=True)
            return draft.change(before)
        return nothing

    def _lacks_confirmation(self, before: Rollout, after: Rollout, seen: Look) -> bool:
        """Whether a gate would pass on what may be old news."""
        passes = after.stage > before.stage or (
            after.state is RolloutState.COMPLETED and before.state is not RolloutState.COMPLETED
        )
        if not passes or before.at_once:
            self._confirmations.forget(before.name)
            return False
        if not self._confirmations.is_confirmed(before.name, before.stage, seen.heard_at, self._clock.monotonic()):
            return True
        self._confirmations.forget(before.name)
        return False

    def _looked_at(self, rollout: Rollout, now: float) -> Rollout:
        """With the time that its stage was observed, this look included."""
        observed_s = self._soak.look(
            rollout.name,
            rollout.stage_started_ms,
            rollout.observed_s,
            now,
            most_s=_MOST_PAUSES * self._pause_s,
            counts=rollout.state in (RolloutState.RUNNING, RolloutState.HELD),
        )
        return dataclasses.replace(rollout, observed_s=observed_s)

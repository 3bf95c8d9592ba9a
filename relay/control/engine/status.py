"""Rollouts as people see them, with what is known of them just now."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from relay.aio.clock import Clock
from relay.control.engine.look import Survey
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.counts import Gate, Troubled, Verdict
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.control.rollouts.soak import Soak
from relay.control.rollouts.view import assignment_view, rollout_view
from relay.errors import NotFound, StoreError
from relay.observe import log

_log = log.get("opamp-relay.rollouts")


class Status:
    """Shows them."""

    def __init__(self, ledger: Ledger, history: History, survey: Survey, soak: Soak, *, clock: Clock) -> None:
        self._ledger = ledger
        self._history = history
        self._survey = survey
        self._soak = soak
        self._clock = clock

    async def of(self, name: str) -> dict[str, Any]:
        """One rollout.

        Raises:
            NotFound: there never was one of that name.
        """
        rollout = await self._history.get(name)
        assignment = self._ledger.state.assignments.get(rollout.assignment)
        if assignment is None or rollout not in (assignment.rollout, assignment.pending):
            return rollout_view(rollout, {}, None, [])
        return await self._view(rollout)

    async def _view(self, rollout: Rollout) -> dict[str, Any]:
        state = self._ledger.state
        if rollout.state not in GOING | {RolloutState.ROLLING_BACK}:
            return rollout_view(rollout, {}, None, await self._failed(rollout, state) if rollout.thresholds else [])
        # In a thread: of a million agents it takes seconds, and nodes are answered meanwhile.
        seen = await asyncio.to_thread(self._survey.last_look, rollout, state)
        if rollout.state not in GOING:
            return rollout_view(rollout, seen.regions, None, await self._failed(rollout, state))
        lacking = self._survey.yet_to_fetch(rollout, seen, state)
        observed_s = self._soak.observed_s(rollout.name, rollout.stage_started_ms, rollout.observed_s)
        rollout = dataclasses.replace(rollout, observed_s=observed_s)
        gate = Gate(Verdict.HOLD, lacking) if lacking else plan.verdict(rollout, seen.regions, self._clock.unix_ms())
        return rollout_view(rollout, seen.regions, gate, seen.troubled)

    async def _failed(self, rollout: Rollout, state: State) -> list[Troubled]:
        return await asyncio.to_thread(self._survey.failed, rollout, state)

    def assignments(self) -> list[dict[str, Any]]:
        """What is in force of each assignment, by name."""
        return [assignment_view(state) for _, state in sorted(self._ledger.state.assignments.items())]

    async def listing(self) -> list[dict[str, Any]]:
        """Every rollout that is active, and the latest of each assignment, by name of the assignment."""
        found = []
        for _, state in sorted(self._ledger.state.assignments.items()):
            found += [await self._view(rollout) for rollout in (state.rollout, state.pending) if rollout is not None]
            if state.number and state.latest != f"{state.name}-{state.number}":
                try:  # the newest was rejected
                    newest = await self._history.stored(f"{state.name}-{state.number}")
                    found.append(rollout_view(newest, {}, None, []))
                except NotFound:
                    pass
                except StoreError as error:
                    _log.error("rollout_unreadable", error=str(error))
        return found

    async def history(self, assignment: str) -> list[dict[str, Any]]:
        """All rollouts of an assignment that are kept, oldest first.

        Raises:
            NotFound: there never was one.
        """
        kept = await self._history.of(assignment)
        if not kept:
            raise NotFound(f"assignment {assignment} has no history")
        state = self._ledger.state.assignments.get(assignment)
        active = {r.name: r for r in (state.rollout, state.pending) if r and r.active} if state is not None else {}
        return [await self._view(active[r.name]) if r.name in active else rollout_view(r, {}, None, []) for r in kept]

    def counts(self) -> dict[str, int]:
        """How many rollouts are in each state that is not over; for the metric."""
        found: dict[str, int] = {}
        for state in self._ledger.state.assignments.values():
            for rollout in (state.rollout, state.pending):
                if rollout is not None and rollout.active:
                    found[rollout.state.value] = found.get(rollout.state.value, 0) + 1
        return found

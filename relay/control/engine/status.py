"""The status of rollouts, as users see it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from relay.aio.clock import Clock
from relay.control.engine.look import Survey
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.counts import Gate, TroubledAgent, Verdict
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.control.rollouts.soak import Soak
from relay.control.rollouts.view import assignment_view, rollout_view
from relay.errors import NotFound, StoreError
from relay.observe import log

_log = log.get("opamp-relay.rollouts")
T = TypeVar("T")


class Status:
    """Shows rollouts."""

    def __init__(self, ledger: Ledger, history: History, survey: Survey, soak: Soak, *, clock: Clock) -> None:
        self._ledger = ledger
        self._history = history
        self._survey = survey
        self._soak = soak
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "rollout-status")

    async def of(self, name: str) -> dict[str, Any]:
        """The status of a rollout.

        Raises:
            NotFound: there never was a rollout with this name.
        """
        rollout = await self._history.get(name)
        state = self._ledger.state
        assignment = state.assignments.get(rollout.assignment)
        if assignment is None or rollout not in (assignment.rollout, assignment.pending):
            return rollout_view(rollout, {}, None, [])
        return await self._view(rollout, state)

    async def _view(self, rollout: Rollout, state: State) -> dict[str, Any]:
        if rollout.state not in GOING | {RolloutState.ROLLING_BACK}:
            return rollout_view(rollout, {}, None, await self._failed(rollout, state) if rollout.thresholds else [])
        look = await self._in_thread(self._survey.last_look, rollout, state)
        if rollout.state not in GOING:
            return rollout_view(rollout, look.regions, None, await self._failed(rollout, state))
        hold_reason = self._survey.prefetch_obstacle(rollout, look, state)
        observed_s = self._soak.observed_s(rollout.name, rollout.stage_started_ms, rollout.observed_s)
        rollout = dataclasses.replace(rollout, observed_s=observed_s)
        gate = (
            Gate(Verdict.HOLD, hold_reason)
            if hold_reason
            else plan.verdict(rollout, look.regions, self._clock.unix_ms())
        )
        return rollout_view(rollout, look.regions, gate, look.troubled)

    async def _failed(self, rollout: Rollout, state: State) -> list[TroubledAgent]:
        return await self._in_thread(self._survey.failed, rollout, state)

    async def _in_thread(self, function: Callable[[Rollout, State], T], rollout: Rollout, state: State) -> T:
        """Run a look in a thread: with a million agents it takes seconds, and nodes must be answered meanwhile.

        It is a single thread of its own. Concurrent requests share one look, and do not occupy the default executor.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, rollout, state)

    def assignments(self) -> list[dict[str, Any]]:
        """The revision in force of each assignment, sorted by name."""
        return [assignment_view(state) for _, state in sorted(self._ledger.state.assignments.items())]

    async def listing(self) -> list[dict[str, Any]]:
        """All active rollouts and the latest of each assignment, sorted by assignment."""
        views, state = [], self._ledger.state
        for name, assignment in sorted(state.assignments.items()):
            going = [rollout for rollout in (assignment.rollout, assignment.pending) if rollout is not None]
            views += [await self._view(rollout, state) for rollout in going]
            if assignment.number and assignment.latest != f"{name}-{assignment.number}":
                try:  # the newest was rejected
                    newest = await self._history.stored(f"{name}-{assignment.number}")
                    views.append(rollout_view(newest, {}, None, []))
                except NotFound:
                    pass
                except StoreError as error:
                    _log.error("rollout_unreadable", error=str(error))
        return views

    async def history(self, name: str) -> list[dict[str, Any]]:
        """All stored rollouts of an assignment, oldest first.

        Raises:
            NotFound: it never had one.
        """
        rollouts = await self._history.of(name)
        if not rollouts:
            raise NotFound(f"assignment {name} has no history")
        state = self._ledger.state
        current = state.assignments.get(name)
        active = (
            {r.name: r for r in (current.rollout, current.pending) if r and r.active} if current is not None else {}
        )
        return [
            await self._view(active[r.name], state) if r.name in active else rollout_view(r, {}, None, [])
            for r in rollouts
        ]

    def counts(self) -> dict[str, int]:
        """The number of active rollouts in each state; for the metric."""
        counts: dict[str, int] = {}
        for state in self._ledger.state.assignments.values():
            for rollout in (state.rollout, state.pending):
                if rollout is not None and rollout.active:
                    counts[rollout.state.value] = counts.get(rollout.state.value, 0) + 1
        return counts

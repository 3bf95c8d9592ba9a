"""Rollouts as people see them, with what is known of them just now."""

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
from relay.control.rollouts.counts import Gate, Troubled, Verdict
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.control.rollouts.soak import Soak
from relay.control.rollouts.view import assignment_view, rollout_view
from relay.errors import NotFound, StoreError
from relay.observe import log

_log = log.get("opamp-relay.rollouts")
T = TypeVar("T")


class Status:
    """Shows them."""

    def __init__(self, ledger: Ledger, history: History, survey: Survey, soak: Soak, *, clock: Clock) -> None:
        self._ledger = ledger
        self._history = history
        self._survey = survey
        self._soak = soak
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "rollout-status")

    async def of(self, name: str) -> dict[str, Any]:
        """One rollout.

        Raises:
            NotFound: there never was one of that name.
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
        seen = await self._in_thread(self._survey.last_look, rollout, state)
        if rollout.state not in GOING:
            return rollout_view(rollout, seen.regions, None, await self._failed(rollout, state))
        lacking = self._survey.yet_to_fetch(rollout, seen, state)
        observed_s = self._soak.observed_s(rollout.name, rollout.stage_started_ms, rollout.observed_s)
        rollout = dataclasses.replace(rollout, observed_s=observed_s)
        gate = Gate(Verdict.HOLD, lacking) if lacking else plan.verdict(rollout, seen.regions, self._clock.unix_ms())
        return rollout_view(rollout, seen.regions, gate, seen.troubled)

    async def _failed(self, rollout: Rollout, state: State) -> list[Troubled]:
        return await self._in_thread(self._survey.failed, rollout, state)

    async def _in_thread(self, ask: Callable[[Rollout, State], T], rollout: Rollout, state: State) -> T:
        """Of a million agents it takes seconds, and nodes are answered meanwhile.

        In one thread of its own: of many who ask at once the first has it looked at, and nobody else has to wait for them.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, ask, rollout, state)

    def assignments(self) -> list[dict[str, Any]]:
        """What is in force of each assignment, by name."""
        return [assignment_view(state) for _, state in sorted(self._ledger.state.assignments.items())]

    async def listing(self) -> list[dict[str, Any]]:
        """Every rollout that is active, and the latest of each assignment, by name of the assignment."""
        found, state = [], self._ledger.state
        for name, assignment in sorted(state.assignments.items()):
            going = [rollout for rollout in (assignment.rollout, assignment.pending) if rollout is not None]
            found += [await self._view(rollout, state) for rollout in going]
            if assignment.number and assignment.latest != f"{name}-{assignment.number}":
                try:  # the newest was rejected
                    newest = await self._history.stored(f"{name}-{assignment.number}")
                    found.append(rollout_view(newest, {}, None, []))
                except NotFound:
                    pass
                except StoreError as error:
                    _log.error("rollout_unreadable", error=str(error))
        return found

    async def history(self, name: str) -> list[dict[str, Any]]:
        """All rollouts of an assignment that are kept, oldest first.

        Raises:
            NotFound: there never was one.
        """
        kept = await self._history.of(name)
        if not kept:
            raise NotFound(f"assignment {name} has no history")
        state = self._ledger.state
        held = state.assignments.get(name)
        active = {r.name: r for r in (held.rollout, held.pending) if r and r.active} if held is not None else {}
        return [
            await self._view(active[r.name], state) if r.name in active else rollout_view(r, {}, None, []) for r in kept
        ]

    def counts(self) -> dict[str, int]:
        """How many rollouts are in each state that is not over; for the metric."""
        found: dict[str, int] = {}
        for state in self._ledger.state.assignments.values():
            for rollout in (state.rollout, state.pending):
                if rollout is not None and rollout.active:
                    found[rollout.state.value] = found.get(rollout.state.value, 0) + 1
        return found

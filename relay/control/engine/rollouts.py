"""Rollouts in action: looks at the fleet, takes the steps that follow, and does what people ask.

Each step is stored, with its audit entry and its notices, before anything acts on it; publishing comes after and can be
repeated. After a kill at any instant the stored state is the whole truth, and the next look at the fleet goes on from it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from relay.aio.clock import Clock
from relay.control.engine import notifier as notify
from relay.control.engine.survey import Survey
from relay.control.fleet.fleet import Fleet
from relay.control.ledger import audit
from relay.control.ledger.catalog import Catalog
from relay.control.ledger.revisions import Revisions
from relay.control.rollouts import plan
from relay.control.rollouts.assignment import Advance, AssignmentState, packages_of
from relay.control.rollouts.model import (
    ACTIVE,
    GOING,
    Gate,
    GlobalPackages,
    GlobalRevision,
    Look,
    Rollout,
    State,
    Troubled,
    Verdict,
)
from relay.control.rollouts.soak import Confirmations, Soak
from relay.control.rollouts.view import assignment_view, revision_hash, rollout_view
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import read_all, read_truth
from relay.errors import Conflict, NotFound, StoreError
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.words import close_to

_log = log.get("opamp-relay.rollouts")
_SETTLE_S = 30.0
_MOST_PAUSE_S = 15.0
_MOST_PAUSES = 3
"""Of the time between two looks, so many pauses count: while the control plane was down nobody looked."""
_STEPPING = frozenset({State.RUNNING, State.HELD, State.ROLLING_BACK})


class Rollouts:
    """All rollouts.

    Args:
        catalog: the documents in force.
        published: called after each step; brings the regions up to date.
    """

    def __init__(
        self,
        database: Database,
        revisions: Revisions,
        fleet: Fleet,
        survey: Survey,
        *,
        clock: Clock,
        metrics: ControlPlaneMetrics,
        catalog: Callable[[], Catalog],
        published: Callable[[], Awaitable[None]],
    ) -> None:
        self._database = database
        self.revisions = revisions
        self._fleet = fleet
        self._survey = survey
        self._clock = clock
        self._metrics = metrics
        self._catalog = catalog
        self._published = published
        self._unpublished = False
        """A step was stored, and the regions have yet to be told."""
        self._began = clock.monotonic()
        self._looked_s = 0.0
        """How long the last looks held the loop; waiting for the database is no part of it."""
        self._pause_s = _MOST_PAUSE_S
        """Between the last looks and the next."""
        self._soak = Soak()
        self._confirmations = Confirmations()

    # ---- stepping

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

    async def tick(self) -> None:
        """Look at every active rollout once and take the steps that follow."""
        for name in list(self.revisions.states):
            try:
                await self._step(name)
            except StoreError:
                raise
            except Exception:
                # Whatever it is, it must not stand in the way of all other rollouts.
                _log.exception("rollout_failed", assignment=name)
            await asyncio.sleep(0)
        self._soak.forget_others([s.rollout.name for s in self.revisions.states.values() if s.rollout is not None])
        await self._publish()

    async def _step(self, name: str) -> None:
        state = self.revisions.states.get(name)
        if state is None or state.rollout is None or state.rollout.state not in _STEPPING:
            return
        async with self.revisions.changing:
            state = self.revisions.states.get(name)
            if state is None or state.rollout is None:
                return
            before = state.rollout
            began = self._clock.monotonic()
            seen = self._look(state, before)
            self._looked_s += self._clock.monotonic() - began
            before = self._looked_at(before, began)
            if self._clock.monotonic() - self._began < _SETTLE_S and not all(
                r.connected for r in seen.regions.values()
            ):
                return  # we have just begun, and regions that are well have yet to come back to us
            lacking = self._yet_to_fetch(before, seen)
            after = plan.hold(before, lacking) if lacking else plan.step(before, seen.regions, seen.goals, self._now)
            if self._lacks_confirmation(before, after, seen):
                return
            if after is not before:
                await self._put(before, after, audit.SYSTEM, _action(before, after), after.reason)
            elif self._soak.is_due(before.name):
                await self._keep(before)

    def _look(self, state: AssignmentState, rollout: Rollout) -> Look:
        return self._survey.look(state, rollout, self.revisions.same())

    def _failed(self, rollout: Rollout) -> list[Troubled]:
        return self._survey.failed(rollout, self.revisions.same())

    def _lacks_confirmation(self, before: Rollout, after: Rollout, seen: Look) -> bool:
        """Whether a gate would pass on what may be old news."""
        passes = after.stage > before.stage or (after.state is State.COMPLETED and before.state is not State.COMPLETED)
        if not passes or before.at_once:
            self._confirmations.forget(before.name)
            return False
        heard_at = [node.status_at for region in seen.regions for node in self._survey.nodes_of(region)]
        if not self._confirmations.is_confirmed(before.name, before.stage, heard_at, self._clock.monotonic()):
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
            counts=rollout.state in (State.RUNNING, State.HELD),
        )
        return dataclasses.replace(rollout, observed_s=observed_s)

    async def _keep(self, rollout: Rollout) -> None:
        """Store how long a stage was looked at: no step, so nobody is told."""
        advance = self.revisions.step(rollout)
        async with self._database.write() as connection:
            await self.revisions.store(connection, advance)
        self.revisions.put_in_force(advance)
        self._soak.kept(rollout.name)

    def _yet_to_fetch(self, rollout: Rollout, seen: Look) -> str:
        """What stands in the way of a rollout that begins when its regions have the files; empty for nothing."""
        candidate = rollout.candidate
        if not isinstance(candidate, GlobalPackages) or not candidate.prefetch or any(rollout.thresholds.values()):
            return ""
        wanted = {f.sha256 for p in packages_of(self.revisions.same(), candidate) for f in p.files}
        regions = {region for region, _ in seen.goals}
        for node in self._fleet.nodes.values():
            missing = len(wanted - node.blobs) if node.connected and node.region in regions else 0
            if missing:
                return f"region {node.region} has yet to fetch {missing} of {len(wanted)} files"
        return ""

    @property
    def _now(self) -> int:
        return self._clock.unix_ms()

    async def _put(self, before: Rollout, after: Rollout, actor: str, action: str, reason: str) -> None:
        await self._store(self.revisions.step(after), before, after, actor, action, reason)

    async def _store(
        self, advance: Advance, before: Rollout, after: Rollout, actor: str, action: str, reason: str
    ) -> None:
        entries = [audit.Entry(actor, action, f"Rollout/{after.name}", _digest(before), _digest(after), reason)]
        entries += [
            audit.Entry(actor, other.state.value, f"Rollout/{other.name}", "", _digest(other), other.reason)
            for other in advance.rollouts
            if other.name != after.name
        ]
        async with self._database.write() as connection:
            await self.revisions.store(connection, advance)
            await audit.add(connection, entries, self._now)
            if after.state is not before.state:
                await notify.add(connection, after, reason, self._now)
        self.revisions.put_in_force(advance)
        self._unpublished = True
        if after.state is not before.state:
            self._metrics.rollout_steps[after.state.value] += 1
        _log.info("rollout", rollout=after.name, state=after.state.value, stage=after.stage, actor=actor, reason=reason)

    async def _publish(self) -> None:
        if self._unpublished:
            await self._published()
            self._unpublished = False

    # ---- what people do

    def _find(self, name: str) -> tuple[AssignmentState, Rollout]:
        if name in self.revisions.states:
            name = self.latest(name) or name  # an assignment's own name stands for its newest rollout
        for state in self.revisions.states.values():
            for rollout in (state.pending, state.rollout):
                if rollout is not None and rollout.name == name:
                    return state, rollout
        assignment, _, number = name.rpartition("-")
        known = self.revisions.states.get(assignment)
        if known is not None and number.isdigit() and 0 < int(number) <= known.number:
            latest = self.latest(assignment) or f"{assignment}-{known.number}"
            raise Conflict(f"{name} is over; the latest rollout of {known.kind} {assignment} is {latest}")
        raise NotFound(f"there is no rollout {name}{close_to(name, self.revisions.states)}")

    async def _find_ended(self, name: str) -> tuple[AssignmentState, Rollout]:
        """As `_find`, of those that were rejected or superseded too."""
        try:
            return self._find(name)
        except (NotFound, Conflict):
            before = await self._stored(name)
            state = self.revisions.states.get(before.assignment)
            if state is None:
                raise
            return state, before

    async def _stored(self, name: str) -> Rollout:
        async with self._database.read() as connection:
            rows = await read_truth(connection, schema.rollouts, schema.rollouts.c.name == name)
        if not rows:
            raise NotFound(f"there is no rollout {name}")
        return Rollout.from_plain(json.loads(rows[0].body))

    async def _all(self, *where: sa.ColumnElement[bool]) -> list[Rollout]:
        """Rollouts that are kept, oldest first; those that are damaged are left out, and said."""
        async with self._database.read() as connection:
            rows, bad = await read_all(connection, schema.rollouts, *where)
        for name in bad:
            _log.error("row_damaged", table="rollouts", key=name, consequence="it is left out of histories")
        return [Rollout.from_plain(json.loads(row.body)) for row in sorted(rows, key=lambda row: row.created_ms)]

    async def approve(self, name: str, actor: str, digest: str) -> dict[str, Any]:
        """Approve a change; it begins when it has the approvals that it needs."""
        async with self.revisions.changing:
            state, before = self._find(name)
            after = plan.approve(before, actor, digest, self._now)
            advance = self.revisions.same()
            self.revisions.begin_if_approved(advance, state, after, self._now)
            latest = advance.rollouts[-1]
            await self._store(advance, before, latest, actor, "approve", f"{len(after.approvals)} of {after.needed}")
        await self._publish()
        return await self.status(name)

    async def act(
        self, name: str, action: str, actor: str, *, reason: str = "", stage: int | None = None
    ) -> dict[str, Any]:
        """Reject, pause, resume, promote, roll back or abort.

        Raises:
            NotFound: there is no such rollout, or it is over.
            Conflict: that cannot be done to it now.
        """
        async with self.revisions.changing:
            state, before = self._find(name)
            why = reason or f"{actor} said so"
            if action == "promote":
                seen = self._look(state, before)
                if stage is None:
                    raise Conflict("to promote, name the stage that is meant: of two who do it at once, one is told")
                after = plan.promote(before, stage, f"promoted by {actor}: {why}", seen.regions, seen.goals, self._now)
            else:
                if action in ("rollback", "abort") and before.state in GOING:
                    # What it came to is worth more than that it is over.
                    gate = Gate(Verdict.FAIL, why)
                    before_ended = plan.recorded(before, gate, self._look(state, before).regions, self._now)
                else:
                    before_ended = before
                after = {
                    "reject": lambda: plan.reject(before, why, self._now),
                    "pause": lambda: plan.pause(before, why),
                    "resume": lambda: plan.resume(before),
                    "rollback": lambda: plan.roll_back(before_ended, why),
                    "abort": lambda: plan.abort(before_ended, why, self._now),
                }[action]()
            await self._put(before, after, actor, action, why)
        await self._publish()
        return await self.status(name)

    async def retry(self, name: str, actor: str) -> dict[str, Any]:
        """Forgive failures: offer the candidate again to those that failed, or begin anew what was given up."""
        async with self.revisions.changing:
            state, before = await self._find_ended(name)
            advance = self.revisions.same()
            self.revisions.forgive(advance, state.name)
            going_on = state.rollout is not None and state.rollout.name == before.name
            if going_on and (before.state in GOING or before.state is State.COMPLETED):
                after = plan.try_again(before, self._now) if before.state in GOING else before
                advance.states[state.name] = dataclasses.replace(advance.states[state.name], rollout=after)
                advance.rollouts.append(after)
            elif before.state in ACTIVE:
                raise Conflict(f"{name} is {before.state.value.replace('_', ' ')}; it cannot be tried again now")
            elif before.candidate != state.declared:
                raise Conflict(f"{name} is not what {state.kind} {state.name} asks for any more")
            else:
                catalog = self._catalog()
                gone = catalog.yanked & before.candidate.versions
                if gone:
                    raise Conflict(f"package {', '.join(sorted(gone))} was yanked; assign another version")
                self.revisions.again(advance, catalog, state.name, (actor, *before.authors), self._now)
                after = advance.rollouts[-1]
            raised = advance.states[state.name]
            await self._store(advance, before, after, actor, "retry", f"retry generation {raised.retry}")
        await self._publish()
        return await self.status(after.name)

    # ---- views

    async def get(self, name: str) -> Rollout:
        """One rollout, also one that is over; by the name of an assignment its newest, also one that was rejected.

        Raises:
            NotFound: there never was one of that name.
        """
        if (state := self.revisions.states.get(name)) is not None and state.number:
            name = f"{name}-{state.number}"
        try:
            return self._find(name)[1]
        except (NotFound, Conflict):
            return await self._stored(name)

    async def status(self, name: str) -> dict[str, Any]:
        """One rollout as people see it.

        Raises:
            NotFound: there never was one of that name.
        """
        rollout = await self.get(name)
        state = self.revisions.states.get(rollout.assignment)
        if state is None or rollout not in (state.rollout, state.pending):
            return rollout_view(rollout, {}, None, [])
        return self._view(state, rollout)

    def _view(self, state: AssignmentState, rollout: Rollout) -> dict[str, Any]:
        if rollout.state not in GOING | {State.ROLLING_BACK}:
            return rollout_view(rollout, {}, None, self._failed(rollout) if rollout.thresholds else [])
        seen = self._look(state, rollout)
        gate: Gate | None = None
        if rollout.state in GOING:
            lacking = self._yet_to_fetch(rollout, seen)
            observed_s = self._soak.observed_s(rollout.name, rollout.stage_started_ms, rollout.observed_s)
            rollout = dataclasses.replace(rollout, observed_s=observed_s)
            gate = Gate(Verdict.HOLD, lacking) if lacking else plan.verdict(rollout, seen.regions, self._now)
        return rollout_view(rollout, seen.regions, gate, seen.troubled if gate else self._failed(rollout))

    async def by_hash(self, digits: str) -> tuple[Rollout, GlobalRevision] | None:
        """The rollout whose digest or candidate's hash begins so, else one whose stable revision's does; and what does."""
        known = (await self._all())[::-1]
        for rollout in known:
            if rollout.digest.startswith(digits) or (revision_hash(rollout.candidate) or "").startswith(digits):
                return rollout, rollout.candidate
        stable = ((r, r.stable) for r in known if r.stable is not None)
        return next(((r, s) for r, s in stable if (revision_hash(s) or "").startswith(digits)), None)

    def assignments(self) -> list[dict[str, Any]]:
        """What is in force of each assignment, by name."""
        return [assignment_view(state) for _, state in sorted(self.revisions.states.items())]

    async def listing(self) -> list[dict[str, Any]]:
        """Every rollout that is active, and the latest of each assignment, by name of the assignment."""
        found = []
        for _, state in sorted(self.revisions.states.items()):
            found += [self._view(state, rollout) for rollout in (state.rollout, state.pending) if rollout is not None]
            if state.number and self.latest(state.name) != f"{state.name}-{state.number}":
                try:  # the newest was rejected
                    found.append(rollout_view(await self._stored(f"{state.name}-{state.number}"), {}, None, []))
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
        kept = await self._all(schema.rollouts.c.assignment == assignment)
        if not kept:
            raise NotFound(f"assignment {assignment} has no history")
        state = self.revisions.states.get(assignment)
        active = {r.name: r for r in (state.rollout, state.pending) if r and r.active} if state is not None else {}
        return [
            self._view(state, active[r.name]) if state and r.name in active else rollout_view(r, {}, None, [])
            for r in kept
        ]

    async def expire(self, before_ms: int) -> None:
        """Forget rollouts that ended before a time; the latest of each assignment stays."""
        kept = {
            r.name
            for state in self.revisions.states.values()
            for r in (state.rollout, state.pending, *state.layers)
            if r is not None
        }
        query = sa.select(schema.rollouts.c.name).where(schema.rollouts.c.created_ms < before_ms)
        async with self._database.write() as connection:
            for name in set((await connection.execute(query)).scalars()) - kept:
                await connection.execute(sa.delete(schema.rollouts).where(schema.rollouts.c.name == name))

    async def earlier(self, assignment: str, rollout: str = "") -> Rollout:
        """What an assignment was before: the newest completed rollout to something else than now, or the one named.

        Raises:
            NotFound: there is none.
        """
        state = self.revisions.states.get(assignment)
        if state is None:
            raise NotFound(f"there is no assignment {assignment}")
        for kept in (await self._all(schema.rollouts.c.assignment == assignment))[::-1]:
            if rollout and kept.name == rollout:
                return kept
            if not rollout and kept.state is State.COMPLETED and kept.candidate != state.declared:
                return kept
        if rollout:
            raise NotFound(f"there is no rollout {rollout} of {assignment}")
        raise NotFound(f"{state.kind} {assignment} was never anything else")

    def latest(self, assignment: str) -> str:
        """Name of the newest rollout of an assignment."""
        state = self.revisions.states[assignment]
        newest = state.pending or state.rollout
        return newest.name if newest is not None else ""

    def states(self) -> dict[str, int]:
        """How many rollouts are in each state; for the metric."""
        found: dict[str, int] = {}
        for state in self.revisions.states.values():
            for rollout in (state.rollout, state.pending):
                if rollout is not None and rollout.active:
                    found[rollout.state.value] = found.get(rollout.state.value, 0) + 1
        return found


def _action(before: Rollout, after: Rollout) -> str:
    return "advance" if after.stage != before.stage else after.state.value


def _digest(rollout: Rollout) -> str:
    return f"{rollout.state.value}:{rollout.stage}:{rollout.digest[:16]}"

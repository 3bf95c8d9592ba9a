"""Rollouts by name: those that may still do something are in the state, all others only in the database."""

from __future__ import annotations

import json

import sqlalchemy as sa

from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import GlobalRevision
from relay.control.rollouts.rollout import Rollout, RolloutState
from relay.control.rollouts.view import revision_hash
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import read_all, read_truth
from relay.errors import Conflict, NotFound
from relay.observe import log
from relay.words import close_to

_log = log.get("opamp-relay.history")


def find(state: State, name: str) -> tuple[AssignmentState, Rollout]:
    """A rollout that is going on, or the last of its assignment; an assignment's own name stands for its newest.

    Raises:
        Conflict: it is over, and others came after it.
        NotFound: there is none.
    """
    if name in state.assignments:
        name = state.assignments[name].latest or name
    for assignment in state.assignments.values():
        for rollout in (assignment.pending, assignment.rollout):
            if rollout is not None and rollout.name == name:
                return assignment, rollout
    prefix, _, number = name.rpartition("-")
    known = state.assignments.get(prefix)
    if known is not None and number.isdigit() and 0 < int(number) <= known.number:
        latest = known.latest or f"{prefix}-{known.number}"
        raise Conflict(f"{name} has ended; the latest rollout of {known.kind} {prefix} is {latest}")
    raise NotFound(f"there is no rollout {name}{close_to(name, state.assignments)}")


class History:
    """Reads all rollouts that are kept."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    async def get(self, name: str) -> Rollout:
        """One rollout, also one that is over; by the name of an assignment its newest, also one that was rejected.

        Raises:
            NotFound: there never was one of that name.
        """
        state = self._ledger.state
        if (assignment := state.assignments.get(name)) is not None and assignment.number:
            name = f"{name}-{assignment.number}"
        try:
            return find(state, name)[1]
        except (NotFound, Conflict):
            return await self.stored(name)

    async def stored(self, name: str) -> Rollout:
        """One rollout as it is stored.

        Raises:
            NotFound: there is none of that name.
            StoreError: it is damaged.
        """
        async with self._database.read() as connection:
            rows = await read_truth(connection, schema.rollouts, schema.rollouts.c.name == name)
        if not rows:
            raise NotFound(f"there is no rollout {name}")
        return Rollout.from_plain(json.loads(rows[0].body))

    async def of(self, assignment: str) -> list[Rollout]:
        """All of an assignment, oldest first."""
        return await self._all(schema.rollouts.c.assignment == assignment)

    async def _all(self, *where: sa.ColumnElement[bool]) -> list[Rollout]:
        """Oldest first; those that are damaged are left out, and said."""
        async with self._database.read() as connection:
            rows, bad = await read_all(connection, schema.rollouts, *where)
        for name in bad:
            _log.error("row_damaged", table="rollouts", key=name, consequence="it is left out of the history")
        return [Rollout.from_plain(json.loads(row.body)) for row in sorted(rows, key=lambda row: row.created_ms)]

    async def by_hash(self, digits: str) -> tuple[Rollout, GlobalRevision] | None:
        """The rollout whose digest or candidate's hash begins so, else one whose stable revision's does; and what does."""
        known = (await self._all())[::-1]
        for rollout in known:
            if rollout.digest.startswith(digits) or (revision_hash(rollout.candidate) or "").startswith(digits):
                return rollout, rollout.candidate
        stable = ((r, r.stable) for r in known if r.stable is not None)
        return next(((r, s) for r, s in stable if (revision_hash(s) or "").startswith(digits)), None)

    async def earlier(self, assignment: str, rollout: str = "") -> Rollout:
        """What an assignment was before: the newest completed rollout to something else than now, or the one named.

        Raises:
            NotFound: there is none.
        """
        state = self._ledger.state.assignments.get(assignment)
        if state is None:
            raise NotFound(f"there is no assignment {assignment}")
        for kept in (await self.of(assignment))[::-1]:
            if rollout and kept.name == rollout:
                return kept
            if not rollout and kept.state is RolloutState.COMPLETED and kept.candidate != state.declared:
                return kept
        if rollout:
            raise NotFound(f"there is no rollout {rollout} of {assignment}")
        raise NotFound(f"{state.kind} {assignment} has had no other revision")

    async def expire(self, before_ms: int) -> None:
        """Forget rollouts that began before a time; those that the state holds stay."""
        query = sa.select(schema.rollouts.c.name).where(schema.rollouts.c.created_ms < before_ms)
        async with self._database.write() as connection:
            kept = {
                r.name
                for state in self._ledger.state.assignments.values()
                for r in (state.rollout, state.pending, *state.layers)
                if r is not None
            }
            for name in set((await connection.execute(query)).scalars()) - kept:
                await connection.execute(sa.delete(schema.rollouts).where(schema.rollouts.c.name == name))

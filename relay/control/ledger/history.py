"""Finds rollouts by name. Rollouts that can still act are in the state; all others are only in the database."""

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
from relay.control.storage.sealed import read_all, read_undamaged
from relay.errors import Conflict, NotFound
from relay.observe import log
from relay.words import suggestion

_log = log.get("opamp-relay.history")


def find(state: State, name: str) -> tuple[AssignmentState, Rollout]:
    """A rollout that is active, or the last of its assignment. An assignment's name stands for its newest rollout.

    Raises:
        Conflict: it has ended, and there are newer ones.
        NotFound: there is no such rollout.
    """
    if name in state.assignments:
        name = state.assignments[name].latest or name
    for assignment in state.assignments.values():
        for rollout in (assignment.pending, assignment.rollout):
            if rollout is not None and rollout.name == name:
                return assignment, rollout
    prefix, _, number = name.rpartition("-")
    owner = state.assignments.get(prefix)
    if owner is not None and number.isdigit() and 0 < int(number) <= owner.number:
        latest = owner.latest or f"{prefix}-{owner.number}"
        raise Conflict(f"{name} has ended; the latest rollout of {owner.kind} {prefix} is {latest}")
    raise NotFound(f"there is no rollout {name}{suggestion(name, state.assignments)}")


class History:
    """Reads all stored rollouts."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    async def get(self, name: str) -> Rollout:
        """One rollout, including ended ones. An assignment's name stands for its newest, even if it was rejected.

        Raises:
            NotFound: there is no such rollout.
        """
        state = self._ledger.state
        if (assignment := state.assignments.get(name)) is not None and assignment.number:
            name = f"{name}-{assignment.number}"
        try:
            return find(state, name)[1]
        except (NotFound, Conflict):
            return await self.stored(name)

    async def stored(self, name: str) -> Rollout:
        """One rollout, read from the database.

        Raises:
            NotFound: there is no such rollout.
            StoreError: it is damaged.
        """
        async with self._database.read() as connection:
            rows = await read_undamaged(connection, schema.rollouts, schema.rollouts.c.name == name)
        if not rows:
            raise NotFound(f"there is no rollout {name}")
        return Rollout.from_plain(json.loads(rows[0].body))

    async def of(self, assignment: str) -> list[Rollout]:
        """All stored rollouts of an assignment, oldest first."""
        return await self._all(schema.rollouts.c.assignment == assignment)

    async def _all(self, *where: sa.ColumnElement[bool]) -> list[Rollout]:
        """Oldest first. Leaves out damaged ones, and logs them."""
        async with self._database.read() as connection:
            rows, bad = await read_all(connection, schema.rollouts, *where)
        for name in bad:
            _log.error("row_damaged", table="rollouts", key=name, consequence="it is left out of the history")
        return [Rollout.from_plain(json.loads(row.body)) for row in sorted(rows, key=lambda row: row.created_ms)]

    async def by_hash(self, digits: str) -> tuple[Rollout, GlobalRevision] | None:
        """The newest rollout whose digest, candidate hash or else stable hash begins with `digits`; and the revision."""
        newest_first = (await self._all())[::-1]
        for rollout in newest_first:
            if rollout.digest.startswith(digits) or (revision_hash(rollout.candidate) or "").startswith(digits):
                return rollout, rollout.candidate
        stable = ((r, r.stable) for r in newest_first if r.stable is not None)
        return next(((r, s) for r, s in stable if (revision_hash(s) or "").startswith(digits)), None)

    async def undo_target(self, assignment: str, rollout: str = "") -> Rollout:
        """The rollout that `undo` goes back to: the named one, or else the newest completed one to another revision.

        Raises:
            NotFound: there is no such assignment or rollout.
        """
        state = self._ledger.state.assignments.get(assignment)
        if state is None:
            raise NotFound(f"there is no assignment {assignment}")
        for past in (await self.of(assignment))[::-1]:
            if rollout and past.name == rollout:
                return past
            if not rollout and past.state is RolloutState.COMPLETED and past.candidate != state.declared:
                return past
        if rollout:
            raise NotFound(f"there is no rollout {rollout} of {assignment}")
        raise NotFound(f"{state.kind} {assignment} has no earlier revision")

    async def expire(self, before_ms: int) -> None:
        """Delete rollouts created before a time, except those in the state."""
        query = sa.select(schema.rollouts.c.name).where(schema.rollouts.c.created_ms < before_ms)
        async with self._database.write() as connection:
            needed = {
                r.name
                for state in self._ledger.state.assignments.values()
                for r in (state.rollout, state.pending, *state.layers)
                if r is not None
            }
            for name in set((await connection.execute(query)).scalars()) - needed:
                await connection.execute(sa.delete(schema.rollouts).where(schema.rollouts.c.name == name))

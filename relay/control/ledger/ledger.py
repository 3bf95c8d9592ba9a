"""The truth, and the one door to it: nothing else writes the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from relay.aio.clock import Clock
from relay.aio.watchers import Watchers
from relay.control.ledger import audit, notices, rows
from relay.control.ledger.change import Change
from relay.control.ledger.state import State
from relay.control.storage.database import Database

T = TypeVar("T")


class Ledger:
    """Holds the state in memory and in the database. `load` first."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._changing = asyncio.Lock()
        self._watchers = Watchers()
        self.state = State()
        """What is in force; another value after each change."""
        self.edition = 0
        """Counts the changes that anybody need look at."""

    async def load(self) -> None:
        """Read the state.

        Raises:
            StoreError: something of it is damaged.
        """
        async with self._database.read() as connection:
            self.state = await rows.load(connection)

    async def change(self, by: str, make: Callable[[State, int], Change[T]]) -> T:
        """Change the state: all of it is stored and in force when this returns, or nothing is.

        Of two changes at once the second is made of what the first has left.

        Args:
            by: who does it, for the audit.
            make: (state, Unix time in milliseconds) → what follows; what it says may yet fail to be stored, so that it
                must change nothing itself. It runs in another thread; whatever it raises is raised here.

        Raises:
            StoreError: it could not be stored.
        """
        async with self._changing:
            before, now_ms = self.state, self._clock.unix_ms()
            # In a thread: to count a million agents takes seconds, and nodes are answered meanwhile.
            change = await asyncio.to_thread(make, before, now_ms)
            if change.is_nothing_to(before):
                return change.answer
            told = [step for step in change.steps if not step.quiet]
            entries = [*change.entries, *(step.entry for step in told)]
            async with self._database.write() as connection:
                await rows.store(connection, before, change, by, now_ms)
                await audit.add(connection, by, entries, now_ms)
                await notices.add(connection, told, now_ms)
            self.state = change.state
            self.edition += 1 if entries else 0
        if entries:
            self._watchers.wake()
        return change.answer

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` after every change."""
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._watchers.discard(event)

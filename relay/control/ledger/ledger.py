"""The authoritative state. Nothing else changes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from relay.aio.clock import Clock
from relay.aio.watchers import Watchers
from relay.control.access.actor import Actor
from relay.control.ledger import audit, notices, rows
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.permission import check_change
from relay.control.ledger.state import State
from relay.control.storage.database import Database

T = TypeVar("T")


class Ledger:
    """Keeps the state in memory and in the database. Call `load` first."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._changing = asyncio.Lock()
        self._watchers = Watchers()
        self.state = State()
        """The current state; a new value after each change."""
        self.edition = 0
        """Counts the changes, except quiet ones."""

    async def load(self) -> None:
        """Load the state.

        Raises:
            StoreError: it is damaged.
        """
        async with self._database.read() as connection:
            self.state = await rows.load(connection)

    async def change(self, by: Actor, make: Callable[[State, int], Change[T]]) -> T:
        """Change the state. When this returns, the whole change is stored and in force; if it raises, nothing is.

        Concurrent changes run one after the other; each sees the result of the one before.

        Args:
            by: who does it: for the audit, and for what they may do.
            make: (state, Unix time in milliseconds) → the change. Runs in another thread; its exceptions are raised here.
                It must have no side effects, because storing the change can still fail.

        Raises:
            Forbidden: who makes the change may not.
            StoreError: it could not be stored.
        """
        async with self._changing:
            before, now_ms = self.state, self._clock.unix_ms()
            # In a thread: counting a million agents takes seconds, and nodes need answers meanwhile.
            change = await asyncio.to_thread(make, before, now_ms)
            if change.is_nothing_to(before):
                return change.result
            check_change(by, before, change)
            reported = [step for step in change.steps if not step.quiet]
            entries = [*change.entries, *(step.entry for step in reported)]
            async with self._database.write() as connection:
                await rows.store(connection, before, change, by.name, now_ms)
                await audit.add(connection, by, entries, now_ms)
                await notices.add(connection, reported, now_ms)
            self.state = change.state
            self.edition += 1 if entries else 0
        if entries:
            self._watchers.wake()
        return change.result

    async def record(self, by: Actor, entries: Sequence[Entry]) -> None:
        """Add entries to the audit that change nothing.

        Raises:
            StoreError: they could not be stored.
        """
        async with self._database.write() as connection:
            await audit.add(connection, by, entries, self._clock.unix_ms())

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` after every change, except quiet ones."""
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Undo `watch`."""
        self._watchers.discard(event)

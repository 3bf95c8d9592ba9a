"""Events that are set on every change. They carry no detail: each watcher reads the new state itself."""

from __future__ import annotations

import asyncio


class Watchers:
    """The watchers of one thing."""

    def __init__(self) -> None:
        self._events: set[asyncio.Event] = set()

    def add(self, event: asyncio.Event) -> None:
        """Set `event` on every change from now on."""
        self._events.add(event)

    def discard(self, event: asyncio.Event) -> None:
        """Undo `add`."""
        self._events.discard(event)

    def wake(self) -> None:
        """Set all events."""
        for event in self._events:
            event.set()

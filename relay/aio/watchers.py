"""Events that are set when something has changed: who watches looks for itself at what has become of it."""

from __future__ import annotations

import asyncio


class Watchers:
    """All who watch one thing."""

    def __init__(self) -> None:
        self._events: set[asyncio.Event] = set()

    def add(self, event: asyncio.Event) -> None:
        """Set `event` at every change."""
        self._events.add(event)

    def discard(self, event: asyncio.Event) -> None:
        """Undo `add`."""
        self._events.discard(event)

    def wake(self) -> None:
        """Something has changed."""
        for event in self._events:
            event.set()

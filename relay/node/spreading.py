"""Offers a policy change to all connected agents, in slices of milliseconds so that heartbeats pass in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from relay.aio.clock import Clock
from relay.aio.tasks import Tasks
from relay.node.live import Live
from relay.node.registry import Registry

_SLICE_S = 0.005
"""How long one slice may hold the loop."""


class Spreading:
    """Offers to every agent whose answer changed.

    Args:
        everybody: returns all agents with a session.
        offer: decides again for an agent, at the time given, and sends what is new.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        clock: Clock,
        everybody: Callable[[], Iterable[Live]],
        offer: Callable[[Live, float], None],
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._everybody = everybody
        self._offer = offer
        self._tasks = Tasks()
        self._running: asyncio.Task[None] | None = None
        self.last_s = 0.0
        """How long the last change took to reach all connected agents."""

    def begin(self) -> None:
        """Go through all agents. If a change is still spreading, start over from the first agent."""
        if self._running is not None:
            self._running.cancel()
        self._running = self._tasks.spawn(self._run(), name="offer-to-all")

    async def _run(self) -> None:
        clock = self._clock
        began = clock.monotonic()
        slice_end = began + _SLICE_S
        self._registry.pause()
        try:
            for live in list(self._everybody()):
                now = clock.monotonic()
                if now >= slice_end:
                    await asyncio.sleep(0)
                    now = clock.monotonic()
                    slice_end = now + _SLICE_S
                self._offer(live, now)
        finally:
            self._registry.resume()
        self.last_s = clock.monotonic() - began

    async def close(self) -> None:
        """Stop, even in the middle of a change."""
        await self._tasks.close()

"""Drains a node: closes its connections evenly, so that the other nodes do not get all agents at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from relay.aio.clock import Clock
from relay.transport.ports import CloseReason, Connection

_LINGER_S = 0.3


async def drain(connections: Sequence[Connection], seconds: float, clock: Clock) -> None:
    """Close all connections over `seconds`, oldest first. The door refuses new ones meanwhile."""
    began = clock.monotonic()
    for i, connection in enumerate(connections):
        due = began + seconds * i / len(connections)
        if (wait := due - clock.monotonic()) > 0:
            await asyncio.sleep(wait)
        elif i % 200 == 0:
            await asyncio.sleep(0)
        connection.close(CloseReason.DRAINING)
    if connections:
        await asyncio.sleep(_LINGER_S)

"""The orderly end of a node: agents are sent away evenly, so that the others are not met by all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from relay.aio.clock import Clock
from relay.transport.ports import CloseReason, Connection

_LAST_WORDS_S = 0.3


async def drain(connections: Sequence[Connection], seconds: float, clock: Clock) -> None:
    """Close all connections over `seconds`, oldest first. New ones are refused by the door meanwhile."""
    began = clock.monotonic()
    for i, connection in enumerate(connections):
        due = began + seconds * i / len(connections)
        if (wait := due - clock.monotonic()) > 0:
            await asyncio.sleep(wait)
        elif i % 200 == 0:
            await asyncio.sleep(0)
        connection.close(CloseReason.DRAINING)
    if connections:
        await asyncio.sleep(_LAST_WORDS_S)

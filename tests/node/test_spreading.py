from __future__ import annotations

import asyncio
from typing import Any

from relay.node.spreading import Spreading
from relay.testing.clock import ManualClock
from tests.conftest import eventually


class Desk:
    """Takes two milliseconds to consider an agent."""

    def __init__(self, agents: int) -> None:
        self.clock = ManualClock()
        self.offered: list[int] = []
        self.held = 0
        self.begun = 0
        self.spreading = Spreading(
            self,  # type: ignore[arg-type]
            clock=self.clock,
            everybody=lambda: range(agents),  # type: ignore[arg-type, return-value]
            offer=self.offer,
        )

    def pause(self) -> None:
        self.held += 1
        self.begun += 1

    def resume(self) -> None:
        self.held -= 1

    def offer(self, live: Any, now: float) -> None:
        self.offered.append(live)
        self.clock.advance(0.002)


async def test_each_agent_is_considered_once_while_records_wait() -> None:
    desk = Desk(100)
    desk.spreading.begin()
    await eventually(lambda: len(desk.offered) == 100 and not desk.held)
    assert desk.offered == list(range(100))
    assert round(desk.spreading.last_s, 3) == 0.2
    await desk.spreading.close()


async def test_change_during_spreading_starts_over() -> None:
    desk = Desk(100)
    desk.spreading.begin()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < len(desk.offered) < 100, "others pass between slices"
    desk.spreading.begin()
    await eventually(lambda: desk.offered[-1] == 99 and not desk.held)
    assert desk.offered[-100:] == list(range(100))
    assert desk.begun == 2
    await desk.spreading.close()

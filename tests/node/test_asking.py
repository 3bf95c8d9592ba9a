from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from relay.node.asking import Asking
from relay.observe.metrics import NodeMetrics
from relay.testing.clock import ManualClock
from tests.conftest import eventually


def agent(transport: str = "websocket", **more: Any) -> Any:
    session = SimpleNamespace(full_state_requested=False, needs_full=True)
    return SimpleNamespace(connection=SimpleNamespace(transport_name=transport), session=session, asking=False, **more)


class Desk:
    """Agents that ask for a token when pushed to, as sessions do."""

    def __init__(self, per_second: float) -> None:
        self.clock = ManualClock()
        self.metrics = NodeMetrics("eu")
        self.gone: list[Any] = []
        self.asked: list[Any] = []
        self.asking = Asking(
            per_second,
            clock=self.clock,
            metrics=self.metrics,
            is_live=self.is_live,
            push=self.push,
        )

    def is_live(self, live: Any) -> bool:
        return not any(live is one for one in self.gone)

    def push(self, live: Any, now: float) -> None:
        if self.asking.may_ask(now):
            live.session.full_state_requested = True
            self.asked.append(live)


async def test_waiting_agents_are_asked_in_order_at_the_node_rate() -> None:
    desk = Desk(2)
    agents = [agent() for _ in range(5)]
    for one in agents:
        desk.asking.later(one)
        desk.asking.later(one)
    assert len(desk.asking) == 5, "each waits once"
    await eventually(lambda: len(desk.asked) == 2)
    desk.clock.advance(1)
    await eventually(lambda: len(desk.asked) == 4)
    assert desk.metrics.full_state_requests == 4
    desk.clock.advance(1)
    await eventually(lambda: not len(desk.asking))
    assert sorted(map(id, desk.asked)) == sorted(map(id, agents))


async def test_agents_that_need_no_request_are_skipped() -> None:
    desk = Desk(10)
    gone, told, polls, waits = agent(), agent(), agent("http"), agent()
    for one in (gone, told, polls, waits):
        desk.asking.later(one)
    desk.gone.append(gone)
    told.session.needs_full = False
    await eventually(lambda: desk.asked)
    assert desk.asked == [waits]


async def test_no_agent_is_asked_after_close() -> None:
    desk = Desk(10)
    desk.asking.close()
    desk.asking.later(agent())
    desk.asking.close()
    await asyncio.sleep(0.1)
    assert desk.asked == []

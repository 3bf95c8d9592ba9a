"""Asks agents for their full state, at a rate that the node can bear: after a crash, all of them need to be asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from relay.aio.clock import Clock
from relay.node.live import Live
from relay.observe.metrics import NodeMetrics

_TICK_S = 0.05


class Asking:
    """A token bucket, and the agents that wait for a token.

    Args:
        per_second: how many requests may be sent.
        is_live: whether an agent still has the same session.
        push: sends an agent whatever waits for it. Its session includes the request if `may_ask` allows it.
    """

    def __init__(
        self,
        per_second: float,
        *,
        clock: Clock,
        metrics: NodeMetrics,
        is_live: Callable[[Live], bool],
        push: Callable[[Live, float], None],
    ) -> None:
        self._rate = per_second
        self._clock = clock
        self._metrics = metrics
        self._is_live = is_live
        self._push = push
        self._tokens = max(1.0, per_second)
        self._tokens_at = clock.monotonic()
        self._waiting: deque[Live] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def may_ask(self, now: float) -> bool:
        """Whether another agent may be asked now. Takes a token if so."""
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._metrics.full_state_requests += 1
        return True

    def later(self, live: Live) -> None:
        """Ask an agent when its turn comes. An HTTP agent is asked when it polls."""
        if live.connection.transport_name == "http" or live.session.full_state_requested or live.asking:
            return
        live.asking = True
        self._waiting.append(live)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._ask_waiting)

    def _ask_waiting(self) -> None:
        now = self._clock.monotonic()
        for _ in range(len(self._waiting)):
            live = self._waiting.popleft()
            live.asking = False
            session = live.session
            if not self._is_live(live) or not session.needs_full or session.full_state_requested:
                continue
            self._push(live, now)
            if not session.full_state_requested:
                live.asking = True
                self._waiting.append(live)
                if self._tokens < 1:
                    break
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_TICK_S, self._ask_waiting) if self._waiting else None

    def close(self) -> None:
        """Stop asking."""
        if self._timer is not None:
            self._timer.cancel()

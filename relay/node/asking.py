"""Asking agents for their full state, at a pace that the node can bear: after a crash all are to be asked at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from relay.aio.clock import Clock
from relay.node.live import Live
from relay.observe.metrics import NodeMetrics

_TICK_S = 0.05


class Asking:
    """A bucket of tokens, and those who wait for one.

    Args:
        per_second: requests.
        is_live: whether an agent still has the session that it was asked on.
        push: sends an agent what waits for it: its session asks when `may_ask` lets it.
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
        """Whether one more agent may be asked now; it is counted."""
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._metrics.full_state_requests += 1
        return True

    def later(self, live: Live) -> None:
        """Ask an agent when its turn comes. One over HTTP is asked when it polls."""
        if live.connection.transport_name == "http" or live.session.asked or live.asking:
            return
        live.asking = True
        self._waiting.append(live)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._some)

    def _some(self) -> None:
        now = self._clock.monotonic()
        for _ in range(len(self._waiting)):
            live = self._waiting.popleft()
            live.asking = False
            session = live.session
            if not self._is_live(live) or not session.needs_full or session.asked:
                continue
            self._push(live, now)
            if not session.asked:
                live.asking = True
                self._waiting.append(live)
                if self._tokens < 1:
                    break
        again = bool(self._waiting)
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._some) if again else None

    def close(self) -> None:
        """Ask nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

"""Bounds on connections of HTTP ports without a whole request head: in time and in number. uvicorn sets none."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_S = 10.0
_MAX_WAITING = 256
"""Connections that wait for a head; beyond it the oldest is closed, so that idle ones keep nobody out."""


def bounded(head_s: float = _HEAD_S, most: int = _MAX_WAITING) -> type[H11Protocol]:
    """A protocol of uvicorn for one port, whose connections share the bounds."""
    waiting: dict[Bounded, None] = {}

    class Bounded(H11Protocol):
        """Closes a connection that takes too long over a head."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            if self._is_between and self._deadline is None:
                self._wait()
            super().data_received(data)
            if not self._is_between:
                self._settle()

        def connection_lost(self, exc: Exception | None) -> None:
            self._settle()
            super().connection_lost(exc)

        @property
        def _is_between(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _wait(self) -> None:
            self._deadline = self.loop.call_later(head_s, self.transport.abort)
            waiting[self] = None
            if len(waiting) > most:
                next(iter(waiting)).transport.abort()

        def _settle(self) -> None:
            waiting.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Bounded

"""Limits heads in bytes and time on kept-alive connections too, between a connection and aiohttp.

aiohttp limits the length and number of header lines, but not the whole head. It waits for the rest of a head as long as for
the next request. aiohttp's message queue tells which bytes belong to a head. That is not public API: the exact version is
pinned, and `tests/transport/test_kept.py` covers what we rely on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from relay.transport.head import Refusal

_END = b"\r\n\r\n"


class Kept(asyncio.Protocol):
    """Wraps an aiohttp protocol.

    Args:
        handler: aiohttp's protocol.
        refuse: answers and closes the connection.
    """

    __slots__ = (
        "_ended",
        "_handler",
        "_loop",
        "_max_header_bytes",
        "_partial_bytes",
        "_payload",
        "_refuse",
        "_timeout_s",
        "_timer",
    )

    def __init__(
        self, handler: Any, max_header_bytes: int, header_timeout_s: float, refuse: Callable[[Refusal], None]
    ) -> None:
        self._handler = handler
        self._ended = False
        self._max_header_bytes = max_header_bytes
        self._timeout_s = header_timeout_s
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()
        self._payload: Any = None
        """The body of the latest request."""
        self._partial_bytes = 0
        """Bytes of an incomplete head."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._ended:
            return  # drop the data, because a reset would lose the answer
        handler = self._handler
        if handler._upgraded or (self._payload is not None and not self._payload.is_eof()):
            handler.data_received(data)
            return
        end = data.find(_END)
        if self._partial_bytes + (len(data) if end < 0 else end) > self._max_header_bytes:
            self._refuse_head(Refusal(431, "header_too_large"))
            return
        queued = handler._request_count
        handler.data_received(data)
        if handler._request_count != queued:
            self._payload = handler._messages[-1][1]
            self._reset()
        elif end < 0 and data:
            self._partial_bytes += len(data)
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout_s, self._refuse_head, Refusal(408, "header_timeout"))

    def _reset(self) -> None:
        self._partial_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_head(self, refusal: Refusal) -> None:
        self._reset()
        self._ended = True
        self._handler.transport = None  # otherwise it would close the transport
        self._handler.connection_lost(None)
        self._refuse(refusal)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        keep_open: bool | None = None if self._ended else self._handler.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._reset()
        if not self._ended:
            self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.resume_writing()

"""Between a connection and aiohttp: heads are bounded in bytes and time also on a connection that is kept.

aiohttp bounds each line of a head and how many there are, not their sum, and waits for a half head as long as for the next
request. Which bytes are of a head is told by its queue of messages, which is no public API: the exact version is pinned,
and `tests/transport/test_kept.py` holds what we rely on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from relay.transport.head import Refusal

_END = b"\r\n\r\n"


class Kept(asyncio.Protocol):
    """Stands before an aiohttp protocol.

    Args:
        handler: aiohttp's.
        refuse: answers, and ends the connection.
    """

    __slots__ = ("_ended", "_half", "_handler", "_loop", "_most", "_payload", "_refuse", "_timeout_s", "_timer")

    def __init__(
        self, handler: Any, max_header_bytes: int, header_timeout_s: float, refuse: Callable[[Refusal], None]
    ) -> None:
        self._handler = handler
        self._ended = False
        self._most = max_header_bytes
        self._timeout_s = header_timeout_s
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()
        self._payload: Any = None
        """The body of the newest request."""
        self._half = 0
        """Bytes of a head that is not whole."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._ended:
            return  # read and dropped, so that the answer is not lost to a reset
        handler = self._handler
        if handler._upgraded or (self._payload is not None and not self._payload.is_eof()):
            handler.data_received(data)
            return
        end = data.find(_END)
        if self._half + (len(data) if end < 0 else end) > self._most:
            self._end(Refusal(431, "header_too_large"))
            return
        queued = handler._request_count
        handler.data_received(data)
        if handler._request_count != queued:
            self._payload = handler._messages[-1][1]
            self._whole()
        elif end < 0 and data:
            self._half += len(data)
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout_s, self._end, Refusal(408, "header_timeout"))

    def _whole(self) -> None:
        self._half = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, refusal: Refusal) -> None:
        self._whole()
        self._ended = True
        self._handler.transport = None  # else it would close what it loses
        self._handler.connection_lost(None)
        self._refuse(refusal)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        ends: bool | None = None if self._ended else self._handler.eof_received()
        return ends

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._whole()
        if not self._ended:
            self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.resume_writing()

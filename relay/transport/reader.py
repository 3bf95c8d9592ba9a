"""picows' protocol, with a read buffer that counts against a budget and can be given back.

picows keeps an unfinished frame in a buffer that doubles as it fills and never shrinks. Without a limit, a few dozen peers
would fill the memory, and an agent that once reported a megabyte would hold two for ever.

`WSProtocol` is not public API. We use it because the door has already read the request. The exact version is pinned, and
`tests/transport/test_reader.py` and `test_websocket.py` cover what we rely on: the constructor, `connection_made` (also a
second call), `get_buffer` and `buffer_updated`, how the buffer grows, and the close codes sent for broken frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from picows import WSAutoPingStrategy, WSListener, WSTransport, WSUpgradeRequest
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from relay.errors import Overloaded
from relay.transport.ports import AssemblyBudget

_INITIAL_BYTES = 4096
_WORTH_RENEWING_BYTES = 16 << 10
_NORMAL_CLOSURE = 1000
"""The answer to a Close frame without a code."""
_get_buffer, _buffer_updated = WSProtocol.get_buffer, WSProtocol.buffer_updated
_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """Turns picows' log records into debug records: it logs agents' mistakes as if they were our errors.

    This is an adapter because picows would create a child of a real logger for each connection.
    """

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)
        # Answer before picows closes with 1002: data after a Close frame is ignored (RFC 6455, 1.4).
        if _SECOND_CLOSE in str(args) and _reading is not None:
            _reading.answer_close()

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    info = warning


_SECOND_CLOSE = "CLOSE for the second time"
_reading: FrameReader | None = None
"""The reader that is active now: picows' errors do not say which connection they belong to."""
_LOGGER = _Quiet(logging.getLogger("picows"), {})


class _NoSocket:
    """Ignores socket options. picows sets and reads some in each `connection_made`."""

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: int) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        return 0


class _Silent:
    """Discards the handshake that a new protocol goes through. The peer already got the answer."""

    _socket = _NoSocket()

    def get_extra_info(self, name: str) -> _NoSocket | None:
        return self._socket if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        pass


_SILENT = _Silent()


class FrameReader(WSProtocol):  # type: ignore[misc]
    """Reads the frames of one WebSocket connection.

    Args:
        listener: receives the frames.
        max_frame_bytes: a larger frame closes the connection with 1009.
        budget: the buffer's growth is taken from it; `release` gives it back.
        over: called once when the budget is spent; it must stop the reading.
    """

    __slots__ = ("_budget", "_initial", "_over", "_size", "has_begun")

    def __init__(
        self, listener: WSListener, max_frame_bytes: int, budget: AssemblyBudget, over: Callable[[], None]
    ) -> None:
        def factory(_: WSUpgradeRequest) -> WSListener:
            return listener

        super().__init__(
            None,  # host_port: for clients only
            None,  # ws_path: likewise
            False,  # is_client_side
            factory,
            _LOGGER,
            True,  # disconnect_on_exception
            None,  # handshake timeout: the door has one
            False,  # auto ping needs a task for each connection; the node probes all of them with one timer
            10.0,
            10.0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # auto pong: the listener answers pings, unless the peer does not read
            max_frame_bytes,
            None,
            _INITIAL_BYTES,
        )
        self._budget = budget
        self._over: Callable[[], None] | None = over
        self._size = self._initial = len(_get_buffer(self, -1))
        self.has_begun = False
        """Data has arrived after the last whole frame. The listener resets this when it gets a frame."""

    def get_buffer(self, size_hint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`. The length of the free part shows whether the buffer has grown."""
        global _reading
        _reading = self
        view: memoryview = _get_buffer(self, size_hint)
        if len(view) > self._size:
            self._count_growth(len(view))
        return view

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self.has_begun = True  # until the listener gets a frame with nothing after it
        _buffer_updated(self, nbytes)

    def _count_growth(self, free: int) -> None:
        # The buffer doubles when it is nine tenths full, so its free part is then larger than the whole was. If a read
        # filled it to the last byte, the free part is only as large: the growth is noticed at the next doubling, and
        # half of the buffer is counted until then.
        size = self._size
        while size < free:
            size *= 2
        if self._over is None:
            return
        try:
            self._budget.take(size - self._size)
        except Overloaded:
            over, self._over = self._over, None
            over()
        else:
            self._size = size

    @property
    def worth_renewing(self) -> bool:
        """Whether the buffer is much larger than most messages."""
        return self._size > _WORTH_RENEWING_BYTES

    def release(self) -> None:
        """Give the buffer's growth back to the budget. The reader is no longer used."""
        self._budget.give_back(self._size - self._initial)
        self._size, self._over = self._initial, None

    def feed(self, data: bytes) -> None:
        """Process bytes that arrived before this was the transport's protocol."""
        view = memoryview(data)
        while view:
            buffer = self.get_buffer(-1)
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            view = view[size:]
            self.buffer_updated(size)

    def answer_close(self) -> None:
        """Answer a Close frame that the listener has not received yet."""
        self.transport.send_close(self.transport.close_handshake.recv.code or _NORMAL_CLOSURE)

    def take_over(self, transport: asyncio.Transport) -> WSTransport:
        """Continue a live WebSocket connection with a buffer of the initial size.

        The connection's earlier reader, if any, must have delivered everything it read.
        """
        self.connection_made(_SILENT)
        self.feed(_REQUEST)
        self.connection_made(transport)
        transport.set_protocol(self)
        renewed: WSTransport = self.transport
        return renewed

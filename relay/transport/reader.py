"""picows' protocol with a read buffer that is counted, and given back.

picows keeps an unfinished frame in a buffer that doubles as it fills and never shrinks: without a bound a few dozen peers
fill the memory, and an agent that once reported a megabyte holds two for ever.

`WSProtocol` is not public API; it is used because the door has already read the request (see `door`). The exact version
is pinned and `tests/transport/test_reader.py` and `test_websocket.py` hold what we rely on: the constructor,
`connection_made` (a second time on the same protocol, too), `get_buffer`/`buffer_updated`, how the buffer grows, and the
close codes sent for broken frames.
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
"""The answer to a Close frame that says no code."""
_get_buffer, _buffer_updated = WSProtocol.get_buffer, WSProtocol.buffer_updated
_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """picows logs what agents do wrong as errors of ours; here it is counted, and logged for debugging only.

    An adapter, not a Logger: picows would make a child logger for each connection.
    """

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)
        # Before picows closes with 1002: what comes behind a Close frame is not looked at (RFC 6455, 1.4).
        if _SECOND_CLOSE in str(args) and _reading is not None:
            _reading.answer_close()

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    info = warning


_SECOND_CLOSE = "CLOSE for the second time"
_reading: FrameReader | None = None
"""The one that reads now: picows' errors do not say whose they are."""
_LOGGER = _Quiet(logging.getLogger("picows"), {})


class _NoSocket:
    """Takes socket options for nobody: picows sets and asks for some each time that a connection is made."""

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: int) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        return 0


class _Silent:
    """Stands for a transport while a protocol is brought past its handshake: the peer had the answer long ago."""

    _socket = _NoSocket()

    def get_extra_info(self, name: str) -> _NoSocket | None:
        return self._socket if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        pass


_SILENT = _Silent()


class FrameReader(WSProtocol):  # type: ignore[misc]
    """One WebSocket connection's frames.

    Args:
        listener: hears of the frames.
        max_frame_bytes: a larger frame closes with 1009.
        budget: what the buffer has grown by is taken from here, and given back by `release`.
        over: called once when the budget is spent; must see to it that nothing more is read.
    """

    __slots__ = ("_budget", "_initial", "_over", "_size", "has_begun")

    def __init__(
        self, listener: WSListener, max_frame_bytes: int, budget: AssemblyBudget, over: Callable[[], None]
    ) -> None:
        def factory(_: WSUpgradeRequest) -> WSListener:
            return listener

        super().__init__(
            None,  # host_port: a client's business
            None,  # ws_path: likewise
            False,  # is_client_side
            factory,
            _LOGGER,
            True,  # disconnect_on_exception
            None,  # handshake timeout: the door had one
            False,  # auto ping: one task a connection; the node probes all of them with one timer
            10.0,
            10.0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # answer pings: the listener does, and not for a peer that does not read
            max_frame_bytes,
            None,
            _INITIAL_BYTES,
        )
        self._budget = budget
        self._over: Callable[[], None] | None = over
        self._size = self._initial = len(_get_buffer(self, -1))
        self.has_begun = False
        """Something was read behind the last whole frame; the listener says when one is whole."""

    def get_buffer(self, size_hint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`. The length of the free part tells when the buffer has grown."""
        global _reading
        _reading = self
        view: memoryview = _get_buffer(self, size_hint)
        if len(view) > self._size:
            self._count_growth(len(view))
        return view

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self.has_begun = True  # until the listener hears of a frame with nothing behind it
        _buffer_updated(self, nbytes)

    def _count_growth(self, free: int) -> None:
        # It doubles when nine tenths are full, so that what is free then is more than all there was. Only where a read
        # filled it to the last byte it is as much, and is found at the next doubling: counted as half until then.
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
        """Whether the buffer is much larger than most messages are."""
        return self._size > _WORTH_RENEWING_BYTES

    def release(self) -> None:
        """This reader is done with."""
        self._budget.give_back(self._size - self._initial)
        self._size, self._over = self._initial, None

    def feed(self, received: bytes) -> None:
        """Take what was read before this was the transport's protocol."""
        view = memoryview(received)
        while view:
            buffer = self.get_buffer(-1)
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            view = view[size:]
            self.buffer_updated(size)

    def answer_close(self) -> None:
        """Answer the Close frame that came, though the listener has not heard of it yet."""
        self.transport.send_close(self.transport.close_handshake.recv.code or _NORMAL_CLOSURE)

    def take_over(self, transport: asyncio.Transport) -> WSTransport:
        """Continue a WebSocket connection, all of which its reader has delivered, with a buffer of the first size."""
        self.connection_made(_SILENT)
        self.feed(_REQUEST)
        self.connection_made(transport)
        transport.set_protocol(self)
        renewed: WSTransport = self.transport
        return renewed

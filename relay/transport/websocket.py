"""Agents over WebSocket, on picows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from relay.aio.clock import Clock
from relay.errors import AgentError, Overloaded, TooLarge
from relay.observe.metrics import NodeMetrics
from relay.opamp import body, frame
from relay.opamp.session import Session
from relay.transport.ports import Agents, AssemblyBudget, Caller, CloseReason, StreamSettings
from relay.transport.reader import FrameReader

_BINARY = WSMsgType.BINARY
_CLOSE_LINGER_S = 1.0
_QUIET_S = 5.0
"""After so much silence, a connection's read buffer may be renewed."""

_CODES = {
    CloseReason.TEXT_FRAME: WSCloseCode.UNSUPPORTED_DATA,
    CloseReason.BAD_FRAME: WSCloseCode.PROTOCOL_ERROR,
    CloseReason.TOO_LARGE: WSCloseCode.MESSAGE_TOO_BIG,
    CloseReason.BAD_MESSAGES: WSCloseCode.POLICY_VIOLATION,
    CloseReason.DUPLICATE_UID: WSCloseCode.POLICY_VIOLATION,
    CloseReason.CREDENTIAL_EXPIRED: WSCloseCode.POLICY_VIOLATION,
    CloseReason.REVOKED: WSCloseCode.POLICY_VIOLATION,
    CloseReason.OVER_BUDGET: WSCloseCode.TRY_AGAIN_LATER,
    CloseReason.DRAINING: WSCloseCode.GOING_AWAY,
    CloseReason.RELEASED: WSCloseCode.GOING_AWAY,
    CloseReason.INTERNAL: WSCloseCode.INTERNAL_ERROR,
}
_REASON_OF_CODE = {
    WSCloseCode.MESSAGE_TOO_BIG: CloseReason.TOO_LARGE,
    WSCloseCode.PROTOCOL_ERROR: CloseReason.BAD_FRAME,
    WSCloseCode.INTERNAL_ERROR: CloseReason.INTERNAL,
}


_PEER_CODES = (*range(1000, 1016), *range(3000, 5000))
"""Close codes from peers that get their own label: those of RFC 6455, 7.4, and those for applications."""


def _may_be_sent(code: int) -> bool:
    """Whether a close frame may carry this code (RFC 6455, 7.4)."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999


class AgentSocket(WSListener):
    """One WebSocket connection. Implements `ports.Connection`."""

    __slots__ = (
        "_agents",
        "_closing",
        "_last_data",
        "_metrics",
        "_now",
        "_on_pong",
        "_parts",
        "_parts_bytes",
        "_paused",
        "_pinged",
        "_reader",
        "_reason",
        "_shared",
        "_stall_timer",
        "_transport",
        "caller",
        "session",
    )
    transport_name = "websocket"
    header = frame.HEADER

    def __init__(self, shared: WebSocketFactory, caller: Caller) -> None:
        self._shared = shared
        self._agents = shared.agents
        self._metrics = shared.metrics
        self._now = shared.clock.monotonic
        self.caller = caller
        self.session: Session | None = None
        self._transport: WSTransport | None = None
        self._reader: FrameReader | None = None
        self._reason: CloseReason | None = None
        """Why we closed; None while the connection is open, or if the peer closed it."""
        self._parts: list[bytes] | None = None
        """Fragments of an incomplete message."""
        self._parts_bytes = 0
        self._on_pong: Callable[[], None] | None = None
        """Called when a pong arrives."""
        self._closing = False
        """The peer has sent a Close frame."""
        self._paused = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._last_data = self._now()
        self._pinged = False

    # ---- picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Register the connection. picows calls this again when the reader is renewed."""
        if self not in self._shared.open:
            self._shared.open[self] = None
            self._metrics.websocket_connections += 1

    def on_ws_frame(self, transport: WSTransport, frame_: WSFrame) -> None:
        """Handle a frame. Nearly all traffic takes the path that answers heartbeats."""
        now = self._now()
        self._last_data = now
        if self._reader is not None:
            self._reader.has_begun = frame_.tail_size > 0
        if frame_.rsv1 or frame_.rsv2 or frame_.rsv3:
            self.close(CloseReason.BAD_FRAME)  # no extension was negotiated
            return
        if frame_.msg_type is not _BINARY or not frame_.fin or self._parts is not None:
            self._other_frame(transport, frame_)
            return
        message = frame_.get_payload_as_bytes()
        session = self.session
        if session is not None and (reply := session.heartbeat(message, now)) is not None:
            self._metrics.heartbeats += 1
            transport.send(_BINARY, reply)
            if self._paused:
                self._check_backlog()
        else:
            self._message(message)
            self._give_back_buffer()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Clean up after the socket has closed."""
        if self._reader is not None:
            self._reader.release()
            self._reader = None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._drop_parts()
        self._shared.open.pop(self, None)
        self._metrics.closed[self._close_label(transport)] += 1
        self._agents.disconnected(self)
        self.session = None

    def _close_label(self, transport: WSTransport) -> str:
        """The metric's label: our own reason, else the close code."""
        if self._reason is not None:
            return self._reason.value
        handshake = transport.close_handshake
        sent = handshake.sent.code if handshake and handshake.sent else None
        if sent in _REASON_OF_CODE:
            return _REASON_OF_CODE[sent].value
        if not handshake or not handshake.recv:
            return CloseReason.LOST.value
        code = handshake.recv.code.value
        return f"peer_{code}" if code in _PEER_CODES else "peer_other"

    def pause_writing(self) -> None:
        """The socket is full. Pushes wait, and the agent has `send_stall_s` to read."""
        self._paused = True
        if self._stall_timer is None:
            loop = asyncio.get_running_loop()
            self._stall_timer = loop.call_later(self._shared.settings.send_stall_s, self._abort_slow)

    def resume_writing(self) -> None:
        """The socket drained."""
        self._paused = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._agents.resumed(self)

    # ---- frames

    def _other_frame(self, transport: WSTransport, frame_: WSFrame) -> None:
        kind = frame_.msg_type
        if self._closing:
            return  # data after a Close frame is ignored (RFC 6455, 1.4)
        if kind is WSMsgType.CLOSE:
            self._closing = True
            code = frame_.get_close_code() if frame_.payload_size else WSCloseCode.OK
            transport.send_close(code if _may_be_sent(code.value) else WSCloseCode.PROTOCOL_ERROR)
            transport.disconnect()
        elif kind is WSMsgType.TEXT:
            self.close(CloseReason.TEXT_FRAME)
        elif kind is WSMsgType.PING:
            if self.writable:
                transport.send_pong(frame_.get_payload_as_bytes())
        elif kind is WSMsgType.PONG:
            self._pinged = False
            if self._on_pong is not None:
                on_pong, self._on_pong = self._on_pong, None
                on_pong()
        elif kind is _BINARY and self._parts is None:
            self._parts = []
            self._fragment(frame_)
        elif kind is WSMsgType.CONTINUATION and self._parts is not None:
            self._fragment(frame_)
        else:
            self.close(CloseReason.BAD_FRAME)

    def _fragment(self, frame_: WSFrame) -> None:
        assert self._parts is not None
        size = frame_.payload_size
        if self._parts_bytes + size > self._shared.settings.max_message_bytes:
            self._drop_parts()
            self.close(CloseReason.TOO_LARGE)
            return
        try:
            self._shared.budget.take(size)
        except Overloaded:
            self._drop_parts()
            self.close(CloseReason.OVER_BUDGET)
            return
        self._parts_bytes += size
        self._parts.append(frame_.get_payload_as_bytes())
        if frame_.fin:
            message = b"".join(self._parts)
            self._drop_parts()
            self._message(message)
            self._give_back_buffer()

    def _drop_parts(self) -> None:
        self._shared.budget.give_back(self._parts_bytes)
        self._parts, self._parts_bytes = None, 0

    def _message(self, message: bytes) -> None:
        metrics = self._metrics
        metrics.messages_received += 1
        if self._reason is not None:
            return
        content = b""
        try:
            content = frame.decode(message)
            reply = self._agents.receive(self, self.caller, content)
        except Overloaded as error:
            reply = body.error_body(body.uid_of_malformed(content), error)
        except AgentError as error:
            metrics.bad_messages[error.outcome.value] += 1
            uid = body.uid_of_malformed(content)
            self.send(body.error_body(uid, error))
            if isinstance(error, TooLarge):
                self.close(CloseReason.TOO_LARGE)
            self._agents.misbehaved(self, uid)
            return
        self.send(reply)

    # ---- the read buffer

    def start(self, transport: asyncio.Transport, received: bytes) -> None:
        """Take over a live transport whose upgrade has been answered. `received` has been read from it since."""
        reader = self._reader = self._new_reader()
        self._transport = reader.take_over(transport)
        reader.feed(received)

    def _new_reader(self) -> FrameReader:
        shared = self._shared
        return FrameReader(self, shared.settings.max_message_bytes, shared.budget, self._over_budget)

    def _over_budget(self) -> None:
        # Not now: uvloop asks for a buffer in the middle of a read.
        asyncio.get_running_loop().call_soon(self._stop_reading)

    def _stop_reading(self) -> None:
        self.close(CloseReason.OVER_BUDGET)
        if self._transport is not None and not self._transport.underlying_transport.is_closing():
            self._transport.underlying_transport.pause_reading()

    def _give_back_buffer(self) -> None:
        """Renew the reader now only if memory is short. A busy node has more urgent work; `probe` does it later."""
        if self._shared.budget.is_short and self._reader is not None and self._reader.worth_renewing:
            # Not now: the reader is our caller.
            asyncio.get_running_loop().call_soon(self._renew_reader)

    def _renew_reader(self) -> None:
        old, transport = self._reader, self._transport
        if old is None or transport is None or transport.underlying_transport.is_closing():
            return
        if self._reason is not None or old.has_begun:
            return
        transport.underlying_transport.pause_reading()
        old.release()
        self._reader = self._new_reader()
        self._transport = self._reader.take_over(transport.underlying_transport)
        self._transport.underlying_transport.resume_reading()

    # ---- ports.Connection

    @property
    def writable(self) -> bool:
        """See `ports.Connection`."""
        return not self._paused and self._reason is None

    def send(self, content: bytes) -> None:
        """See `ports.Connection`."""
        if self._reason is None and self._transport is not None:
            self._metrics.messages_sent += 1
            self._transport.send(_BINARY, frame.encode(content))
            if self._paused:
                self._check_backlog()

    def close(self, reason: CloseReason) -> None:
        """See `ports.Connection`."""
        if self._reason is not None or self._transport is None:
            return
        self._reason = reason
        self._transport.send_close(_CODES.get(reason, WSCloseCode.OK), reason.value.encode())
        # Give the peer a moment to answer the Close frame.
        asyncio.get_running_loop().call_later(_CLOSE_LINGER_S, self._transport.disconnect, False)

    def ping(self, answered: Callable[[], None]) -> None:
        """See `ports.Connection`."""
        if self._transport is not None:
            self._on_pong = answered
            self._transport.send_ping()

    def probe(self, now: float, ping_s: float, idle_s: float) -> None:
        """See `ports.Connection`."""
        silence_s = now - self._last_data
        if silence_s >= _QUIET_S and self._reader is not None and self._reader.worth_renewing:
            self._renew_reader()
        if self._transport is None or silence_s < ping_s:
            return
        if silence_s >= idle_s:
            self.close(CloseReason.IDLE)
        elif not self._pinged and self.writable:
            self._pinged = True
            self._transport.send_ping()

    def _check_backlog(self) -> None:
        assert self._transport is not None
        unsent_bytes = self._transport.underlying_transport.get_write_buffer_size()
        if unsent_bytes > self._shared.settings.max_send_buffer_bytes:
            self._abort_slow()

    def _abort_slow(self) -> None:
        if self._reason is None and self._transport is not None:
            self._reason = CloseReason.SLOW_AGENT
            self._transport.disconnect(False)


class WebSocketFactory:
    """Creates connections and keeps track of the open ones."""

    def __init__(
        self,
        agents: Agents,
        settings: StreamSettings,
        *,
        budget: AssemblyBudget,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self.agents = agents
        self.settings = settings
        self.budget = budget
        self.metrics = metrics
        self.clock = clock
        self.open: dict[AgentSocket, None] = {}
        """Open connections, oldest first."""

    def take_over(self, transport: asyncio.Transport, received: bytes, caller: Caller) -> None:
        """Create a connection from a live transport whose upgrade has been answered.

        Args:
            received: bytes read from the transport since.
        """
        AgentSocket(self, caller).start(transport, received)

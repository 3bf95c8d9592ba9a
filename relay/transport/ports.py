"""What transports and the node know of each other."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.errors import Overloaded
from relay.opamp.session import Session


class CloseReason(enum.Enum):
    """Why a connection ended: the same word in the log, the metric label and the admin page."""

    AGENT_CLOSED = "agent_closed"
    LOST = "lost"
    REPLACED = "replaced"
    DUPLICATE_UID = "duplicate_uid"
    SLOW_AGENT = "slow_agent"
    IDLE = "idle"
    TEXT_FRAME = "text_frame"
    BAD_FRAME = "bad_frame"
    TOO_LARGE = "too_large"
    BAD_MESSAGES = "bad_messages"
    OVER_BUDGET = "over_budget"
    RELEASED = "released"
    DRAINING = "draining"
    INTERNAL = "internal"


class Caller(NamedTuple):
    """Who sends a message, as far as the way tells on which it came."""

    remote: str
    """`IP:PORT`, or `IP`."""
    base_url: str = ""
    """`http://HOST:PORT` or `https://…` as it reached this node; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Bounds of a connection that can be pushed to; see `relay.settings.parts.Limits`."""

    max_message_bytes: int
    max_send_buffer_bytes: int
    send_stall_s: float


class Connection(Protocol):
    """One connection of an agent, or of a proxy with many agents, that can be pushed to."""

    session: Session | None
    """The agent that spoke last: its heartbeats are answered without asking `Agents`."""
    transport_name: str
    """`websocket`, `http` or `grpc`."""
    header: bytes
    """What stands before each message on the wire; see `relay.opamp.session.Session`."""

    @property
    def writable(self) -> bool:
        """Whether something sent now would leave at once. Pushes wait while it would not."""
        ...

    def send(self, body: bytes) -> None:
        """Send a ServerToAgent. Never blocks; an agent that does not read is closed."""
        ...

    def close(self, reason: CloseReason) -> None:
        """End the connection politely."""
        ...

    def ping(self, answered: Callable[[], None]) -> None:
        """Ask the other end whether it is there; `answered` is called when it says so, never where it cannot be asked."""
        ...

    def probe(self, now: float, ping_s: float, idle_s: float) -> None:
        """Ping if nothing came for `ping_s`; close if nothing came for `idle_s`."""
        ...


class Agents(Protocol):
    """What stands behind the transports. Nothing here waits."""

    def receive(self, connection: Connection, caller: Caller, body: bytes) -> bytes:
        """Answer one AgentToServer.

        Args:
            caller: who sent this message; over HTTP all agents have one connection.

        Returns:
            A serialised ServerToAgent.

        Raises:
            AgentError: it was not valid. The caller answers with an error response.
            Overloaded: no room for one more agent.
        """
        ...

    def misbehaved(self, connection: Connection, uid: bytes) -> None:
        """A message was not valid, and was answered so.

        Too many of one agent detach it, or close a connection that it has for itself.

        Args:
            uid: as far as it could be read; empty where it could not.
        """
        ...

    def resumed(self, connection: Connection) -> None:
        """The connection can be written to again."""
        ...

    def disconnected(self, connection: Connection) -> None:
        """The connection has ended."""
        ...


class AssemblyBudget:
    """Bytes of unfinished messages that all connections together may hold."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    @property
    def is_short(self) -> bool:
        """Whether more than half of it is used."""
        return 2 * self.used > self.max_bytes

    def take(self, size: int) -> None:
        """Hold `size` bytes more.

        Raises:
            Overloaded: not with what is held already.
        """
        if self.used + size > self.max_bytes:
            raise Overloaded(f"unfinished messages would take more than {self.max_bytes} bytes")
        self.used += size

    def give_back(self, size: int) -> None:
        """Undo `take`."""
        self.used -= size

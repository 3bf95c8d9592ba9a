"""The interfaces between the transports and the node."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.auth.principal import Principal
from relay.errors import Overloaded
from relay.opamp.session import Session


class CloseReason(enum.Enum):
    """Why a connection ended. The log, the metric label and the admin page use the same word."""

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
    CREDENTIAL_EXPIRED = "credential_expired"
    REVOKED = "revoked"
    INTERNAL = "internal"


class Caller(NamedTuple):
    """Who sends a message, as far as the transport can tell."""

    remote: str
    """`IP:PORT` or `IP`."""
    base_url: str = ""
    """The URL under which the caller reached this node, such as `http://HOST:PORT`; empty if unknown."""
    principal: Principal | None = None
    """Whose credential it came with; None if agents need no credentials."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Limits on a connection that allows pushes; see `relay.settings.parts.Limits`."""

    max_message_bytes: int
    max_send_buffer_bytes: int
    send_stall_s: float


class Connection(Protocol):
    """A connection to an agent, or to a proxy with many agents, that allows pushes."""

    session: Session | None
    """The session of the agent that spoke last. Its heartbeats are answered without `Agents`."""
    caller: Caller
    """Who opened it. Over HTTP each message has its own."""
    transport_name: str
    """`websocket`, `http` or `grpc`."""
    header: bytes
    """Bytes before each message on the wire; see `relay.opamp.session.Session`."""

    @property
    def writable(self) -> bool:
        """Whether a message sent now would leave at once. Pushes wait until it would."""
        ...

    def send(self, body: bytes) -> None:
        """Send a ServerToAgent. Never blocks. Closes the connection if the agent does not read."""
        ...

    def close(self, reason: CloseReason) -> None:
        """Close the connection with a reason."""
        ...

    def ping(self, answered: Callable[[], None]) -> None:
        """Ping the other end and call `answered` when it replies. Do nothing if the transport cannot ping."""
        ...

    def probe(self, now: float, ping_s: float, idle_s: float) -> None:
        """Ping after `ping_s` seconds of silence; close after `idle_s`."""
        ...


class Agents(Protocol):
    """The node's side, which answers agents. Nothing here waits."""

    def receive(self, connection: Connection, caller: Caller, body: bytes) -> bytes:
        """Answer one AgentToServer.

        Args:
            caller: who sent this message; all HTTP agents share one connection.

        Returns:
            A serialised ServerToAgent.

        Raises:
            AgentError: the message is not valid. The transport answers with an error response.
            Overloaded: there is no room for another agent.
        """
        ...

    def misbehaved(self, connection: Connection, uid: bytes) -> None:
        """Record that an invalid message was answered with an error.

        After too many of them, the agent is detached, or its connection is closed unless it is shared.

        Args:
            uid: empty if it could not be read.
        """
        ...

    def resumed(self, connection: Connection) -> None:
        """Record that the connection is writable again."""
        ...

    def disconnected(self, connection: Connection) -> None:
        """Record that the connection has ended."""
        ...


class AssemblyBudget:
    """How many bytes of unfinished messages all connections may hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    @property
    def is_short(self) -> bool:
        """Whether more than half of the budget is used."""
        return 2 * self.used > self.max_bytes

    def take(self, size: int) -> None:
        """Reserve `size` bytes.

        Raises:
            Overloaded: the budget does not have that many left.
        """
        if self.used + size > self.max_bytes:
            raise Overloaded(f"unfinished messages would take more than {self.max_bytes} bytes")
        self.used += size

    def give_back(self, size: int) -> None:
        """Return bytes from `take`."""
        self.used -= size

"""An agent with a session, as the hub and its helpers see it."""

from __future__ import annotations

from relay.opamp import identity
from relay.opamp.contest import Speaker
from relay.opamp.packages import PackagesOffer
from relay.opamp.session import Session
from relay.transport.ports import Caller, Connection

_FORGIVEN_BY = 100
"""So many good messages make up for a bad one."""


class Live:
    """An agent with a session on a connection."""

    __slots__ = (
        "_bad",
        "_bad_at",
        "asking",
        "awaits_description",
        "caller",
        "connection",
        "installed_hash",
        "interval_s",
        "new_uid",
        "packages",
        "session",
    )

    def __init__(self, session: Session, connection: Connection, caller: Caller) -> None:
        self.session = session
        self.connection = connection
        self.caller = caller
        """Who sent its last message."""
        self.asking = False
        """The agent is in the queue to be asked for its full state."""
        self.packages: PackagesOffer | None = None
        """The offer last sent to the agent."""
        self.awaits_description = False
        """The agent has not described itself yet, and still has time to do so."""
        self.installed_hash = b""
        """The all_packages_hash that the agent last reported as installed."""
        self.new_uid: bytes | None = None
        """The uid that the agent was told to use and has not used yet."""
        self.interval_s = 0.0
        """Time between the polls of an HTTP agent. It follows longer intervals at once and shorter ones gradually."""
        self._bad = 0
        self._bad_at = 0
        """The sequence number at the last bad message; all messages since were good."""

    def polled(self, before: float, now: float) -> None:
        """Record a message at `now`. The one before it came at `before`; 0 means never."""
        if before:
            self.interval_s = max(self.interval_s * 0.5, now - before)

    def misbehaved(self) -> int:
        """Record a bad message. Return how many bad messages good ones have not made up for."""
        sequence = self.session.record.sequence_num
        self._bad = max(0, self._bad - max(0, sequence - self._bad_at) // _FORGIVEN_BY) + 1
        self._bad_at = sequence
        return self._bad

    @property
    def speaker(self) -> Speaker:
        """What distinguishes the agent from others with its uid."""
        record = self.session.record
        return Speaker(identity.instance_id(record.agent_description), record.sequence_num)

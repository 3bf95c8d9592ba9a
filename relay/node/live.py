"""An agent with a session, as the hub and what serves it know it."""

from __future__ import annotations

from relay.opamp import identity
from relay.opamp.contest import Speaker
from relay.opamp.packages import PackagesOffer
from relay.opamp.session import Session
from relay.transport.ports import Caller, Connection

_FORGIVEN_BY = 100
"""Good messages that make up for a bad one."""


class Live:
    """An agent with a session on a connection."""

    __slots__ = (
        "_bad",
        "_bad_at",
        "asking",
        "caller",
        "connection",
        "interval_s",
        "new_uid",
        "packages",
        "session",
        "told",
        "waiting",
    )

    def __init__(self, session: Session, connection: Connection, caller: Caller) -> None:
        self.session = session
        self.connection = connection
        self.caller = caller
        """Who sent its last message."""
        self.asking = False
        """Waits to be asked for its full state."""
        self.packages: PackagesOffer | None = None
        """What was last sent to it."""
        self.waiting = False
        """Has yet to say who it is, and time for that."""
        self.told = b""
        """The all_packages_hash that it last said to have installed."""
        self.new_uid: bytes | None = None
        """What it was told to use and has not used yet."""
        self.interval_s = 0.0
        """Observed between the polls of an HTTP agent; a longer one counts at once, a shorter one by and by."""
        self._bad = 0
        self._bad_at = 0
        """Its sequence when it last sent something bad: what it sent since was good."""

    def polled(self, before: float, now: float) -> None:
        """The agent was heard at `now`, and at `before` the time before that (0: never)."""
        if before:
            self.interval_s = max(self.interval_s * 0.5, now - before)

    def misbehaved(self) -> int:
        """It sent something bad. Gives how much of that has not been made up for."""
        sequence = self.session.record.sequence_num
        self._bad = max(0, self._bad - max(0, sequence - self._bad_at) // _FORGIVEN_BY) + 1
        self._bad_at = sequence
        return self._bad

    @property
    def speaker(self) -> Speaker:
        """What it is known by to others of its uid."""
        record = self.session.record
        return Speaker(identity.instance_id(record.agent_description), record.sequence_num)

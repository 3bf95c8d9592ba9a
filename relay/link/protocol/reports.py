"""The node's end of Report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from relay.errors import UpstreamError
from relay.link.protocol.peer import CHUNK_BYTES
from relay.pb.relay.v1 import link_pb2

_MAX_FAST_ROUNDS = 5
"""Differences that remain after this many rounds are resolved at normal speed."""
_LISTING_ENTRY_BYTES = 32
"""Approximate size of one agent in a listing."""


@dataclass(slots=True)
class _Flight:
    agents: set[bytes] = field(default_factory=set)
    removed: set[bytes] = field(default_factory=set)
    forgotten: set[bytes] = field(default_factory=set)
    bodies: set[bytes] = field(default_factory=set)
    verifies: bool = False
    """The report includes the shard sums."""


@dataclass(slots=True)
class ReportSender:
    """Changes that the control plane has not acknowledged: at most one entry per agent, in the order of first change."""

    max_agents: int
    changed: dict[bytes, None] = field(default_factory=dict)
    removed: dict[bytes, None] = field(default_factory=dict)
    bodies: dict[bytes, None] = field(default_factory=dict)
    """Digests of effective configs that the control plane requested."""
    listings: dict[int, None] = field(default_factory=dict)
    forgotten: dict[bytes, None] = field(default_factory=dict)
    """Agents that the node no longer holds but the control plane keeps."""
    verify: bool = True
    """The shard sums should be sent once nothing else is waiting."""
    agreed: bool = False
    """Both ends were found to hold the same state since the stream began."""
    disagreements: int = 0
    """How often in a row the two ends were found to differ."""
    send_status: bool = True
    """The node's own status should be sent, even if nothing else is waiting."""
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _sequence: int = 0
    _window: int = 1
    """How many reports may be unacknowledged; the control plane sets it with its first acknowledgement."""

    def __len__(self) -> int:
        return len(self.changed) + len(self.removed) + len(self.forgotten)

    @property
    def is_urgent(self) -> bool:
        """Whether to send as fast as the link allows: there is a backlog, or the two ends differ."""
        is_catching_up = not self.agreed and self.disagreements < _MAX_FAST_ROUNDS
        return len(self) >= self.max_agents or is_catching_up

    def is_known(self, uid: bytes) -> bool:
        """Whether the control plane has acknowledged every change of an agent."""
        is_waiting = uid in self.changed or uid in self.removed or uid in self.forgotten
        return self.agreed and not is_waiting and not any(uid in flight.agents for flight in self._flights.values())

    @property
    def in_flight(self) -> int:
        """How many reports are unacknowledged."""
        return len(self._flights)

    def change(self, uid: bytes) -> None:
        """Record that an agent changed."""
        self.removed.pop(uid, None)
        self.forgotten.pop(uid, None)
        self.changed[uid] = None
        self.verify = True

    def remove(self, uid: bytes) -> None:
        """Record that the node no longer holds an agent."""
        self.changed.pop(uid, None)
        self.forgotten.pop(uid, None)
        self.removed[uid] = None
        self.verify = True

    def forget(self, uid: bytes) -> None:
        """Record that the node no longer holds an agent, which the control plane should keep."""
        self.remove(uid)
        del self.removed[uid]
        self.forgotten[uid] = None

    def restart(self) -> None:
        """Begin a new stream: whatever was in flight must be sent again."""
        for flight in reversed(self._flights.values()):  # the newest entry for an agent counts
            for queue, uids in (
                (self.changed, flight.agents),
                (self.removed, flight.removed),
                (self.forgotten, flight.forgotten),
            ):
                for uid in uids:
                    if not (uid in self.changed or uid in self.removed or uid in self.forgotten):
                        queue[uid] = None
            self.bodies.update(dict.fromkeys(flight.bodies))
        self._flights.clear()
        self.listings.clear()
        self._sequence = 0
        self._window = 1
        self.verify = self.send_status = True
        self.agreed, self.disagreements = False, 0

    def next(
        self,
        *,
        state: Callable[[bytes], bytes | None],
        body: Callable[[bytes], bytes | None],
        listings: Callable[[Collection[int]], Mapping[int, Mapping[bytes, int]]],
        shards: Callable[[], list[int]],
    ) -> link_pb2.StatusReport | None:
        """Return the next report, or None if nothing is waiting or the window is full.

        Args:
            state: returns the current AgentState of a uid, serialised; None if the agent is gone.
            body: returns the EffectiveConfig of a digest, serialised; None if it is gone.
            listings: returns shard → uid → digest for the given shards.
            shards: returns the 256 sums over the states that `state` last returned.
        """
        if len(self._flights) >= self._window:
            return None
        report = link_pb2.StatusReport()
        flight = _Flight()
        size = 0
        while self.changed and len(flight.agents) < self.max_agents and size < CHUNK_BYTES:
            uid = next(iter(self.changed))
            del self.changed[uid]
            current = state(uid)
            if current is not None:
                flight.agents.add(uid)
                size += len(current)
                report.agents.add(instance_uid=uid, state=current)
        while self.removed and len(flight.removed) < self.max_agents:
            uid = next(iter(self.removed))
            del self.removed[uid]
            flight.removed.add(uid)
            report.removed.append(uid)
        while self.forgotten and len(flight.forgotten) < self.max_agents:
            uid = next(iter(self.forgotten))
            del self.forgotten[uid]
            flight.forgotten.add(uid)
            report.forgotten.append(uid)
        size = 0
        while self.bodies and size < CHUNK_BYTES:
            digest = next(iter(self.bodies))
            del self.bodies[digest]
            content = body(digest)
            if content is not None:
                flight.bodies.add(digest)
                report.effective_configs.add(digest=digest, body=content)
                size += len(content)
        size = 0
        for shard, digests in listings(list(self.listings)).items() if self.listings else ():
            if size >= CHUNK_BYTES:
                break
            del self.listings[shard]
            agents = [link_pb2.AgentDigest(instance_uid=u, digest=d) for u, d in digests.items()]
            report.listings.add(shard=shard, agents=agents)
            size += _LISTING_ENTRY_BYTES * len(agents)
        if self.verify and not self:
            # Reports are processed in order: once this one is, both ends should have the same sums.
            report.shards.extend(shards())
            flight.verifies, self.verify = True, False
        if not report.ListFields() and not self.send_status:
            return None
        self.send_status = False
        self._sequence += 1
        report.sequence = self._sequence
        self._flights[self._sequence] = flight
        return report

    def acknowledged(self, ack: link_pb2.ReportAck) -> None:
        """Process an acknowledgement. Its `released` is for the caller.

        Raises:
            UpstreamError: it acknowledges a report that was never sent.
        """
        if ack.sequence > self._sequence:
            raise UpstreamError(f"report {ack.sequence} was acknowledged but never sent")
        for sequence in [s for s in self._flights if s <= ack.sequence]:
            if self._flights.pop(sequence).verifies:
                self.agreed = not ack.list_shards
                self.verify |= bool(ack.list_shards)
                self.disagreements = 0 if self.agreed else self.disagreements + 1
        if ack.window:
            self._window = ack.window
        self.bodies.update(dict.fromkeys(ack.want_effective_configs))
        self.listings.update(dict.fromkeys(i for i in ack.list_shards if i < 256))
        for uid in ack.want_agents:
            self.change(uid)

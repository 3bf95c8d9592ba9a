"""Both ends of the link without I/O: what to send, and how to react to what arrives.

Each class is one end of one stream direction. Streams may break at any time. The next stream starts from the state that a
class has then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from relay.errors import UpstreamError
from relay.fleet.facts import Trusted
from relay.ids import sha256
from relay.pb.relay.v1 import link_pb2

CHUNK_BYTES = 1 << 20
"""Approximate size of an Update or report; a larger resource is sent alone."""
WINDOW = 16
"""How many reports may be unacknowledged."""

Version = tuple[int, int]
"""(epoch, number) of a manifest."""


def version_message(version: Version) -> link_pb2.ManifestVersion:
    """Convert (epoch, number) to a message."""
    return link_pb2.ManifestVersion(epoch=version[0], number=version[1])


class Peer(NamedTuple):
    """A node at the other end of the link."""

    region: str
    name: str
    incarnation: str = ""
    """Distinguishes successive processes with the same name."""
    software_version: str = ""
    trusted: Trusted = ()
    """Agent attributes that it accepts as labels."""

    def message(self) -> link_pb2.NodeIdentity:
        """The identity that the node sends in its hello."""
        return link_pb2.NodeIdentity(
            region=self.region,
            name=self.name,
            incarnation=self.incarnation,
            software_version=self.software_version,
            trusted_attributes=() if self.trusted == "all" else self.trusted,
            all_attributes_trusted=self.trusted == "all",
        )

    @classmethod
    def of(cls, message: link_pb2.NodeIdentity) -> Peer:
        """Create a peer from `message`."""
        trusted: Trusted = "all"
        if not message.all_attributes_trusted:
            trusted = tuple(message.trusted_attributes)
        return cls(message.region, message.name, message.incarnation, message.software_version, trusted)


# ---- Sync, the node's end


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that arrived completely and may be put in force."""

    version: Version
    resources: dict[str, bytes]
    """Name → payload, with verified digests. A damaged resource keeps its last good payload, if there is one."""
    rejected: dict[str, link_pb2.Rejection]
    """Resources that arrived damaged or not at all."""
    nonce: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What is in force once a candidate is accepted."""

    version: Version
    held: dict[str, bytes]
    changes: dict[str, bytes | None]
    """Changes to write to disk: name → payload, None to delete."""
    ack: link_pb2.SyncAck


class SyncReceiver:
    """The policy resources that a node holds, and how updates change them.

    Args:
        region: the node's region; a manifest for another one is refused.
        held: name → payload, from disk.
        version: version of the manifest in force; None if there never was one.
    """

    def __init__(self, region: str, held: Mapping[str, bytes], version: Version | None) -> None:
        self._region = region
        self.held = dict(held)
        self.version = version
        self._staged: dict[str, bytes] = {}
        self._damaged: dict[str, link_pb2.Rejection] = {}
        self.ahead_of: Version | None = None
        """The control plane's manifest version, if it says that ours is newer or from another database."""

    def hello(self, node: Peer, renderers: frozenset[int]) -> link_pb2.SyncRequest:
        """Return the first message of a stream. Drops the unfinished updates of an earlier stream."""
        self._staged, self._damaged = {}, {}
        self.ahead_of = None
        hello = link_pb2.SyncHello(node=node.message(), renderers=sorted(renderers))
        if self.version is not None:
            hello.manifest.CopyFrom(version_message(self.version))
        hello.held.extend(link_pb2.ResourceRef(name=n, digest=sha256(p)) for n, p in sorted(self.held.items()))
        return link_pb2.SyncRequest(hello=hello)

    def receive(self, update: link_pb2.Update) -> link_pb2.SyncRequest | Candidate:
        """Process one Update.

        Returns:
            An answer to send at once (the update is unfinished, or refused as a whole), or a candidate to put in force
            with `outcome` and `accept`.
        """
        for resource in update.resources:
            if sha256(resource.payload) != resource.digest:
                self._damaged[resource.name] = _rejection(resource.name, resource.digest, "digest does not match")
                self._staged.pop(resource.name, None)
            else:
                self._staged[resource.name] = resource.payload
                self._damaged.pop(resource.name, None)
        if not update.HasField("manifest"):
            return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=update.nonce))
        manifest = update.manifest
        version = (manifest.version.epoch, manifest.version.number)
        staged, self._staged = self._staged, {}
        damaged, self._damaged = self._damaged, {}
        refused = ""
        if manifest.region != self._region:
            refused = f"the manifest is for region {manifest.region}, but this node is in {self._region}"
        elif self.version is not None and version < self.version:
            refused = f"the manifest {version} is older than {self.version}, which is in force"
        if refused:
            return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=update.nonce, refused=refused))
        resources: dict[str, bytes] = {}
        rejected: dict[str, link_pb2.Rejection] = {}
        for entry in manifest.entries:
            payload = staged.get(entry.name, self.held.get(entry.name))
            if payload is not None and sha256(payload) == entry.digest:
                resources[entry.name] = payload
                continue
            rejected[entry.name] = damaged.get(entry.name) or _rejection(entry.name, entry.digest, "did not arrive")
            if entry.name in self.held:
                resources[entry.name] = self.held[entry.name]
        return Candidate(version, resources, rejected, update.nonce)

    def outcome(
        self,
        candidate: Candidate,
        refused: Mapping[str, str],
        keep: frozenset[str],
        salvaged: frozenset[str] = frozenset(),
    ) -> Acceptance:
        """Compute the result of putting a candidate in force without its refused resources. Changes nothing.

        Args:
            candidate: from `receive`.
            refused: name → why it could not be read; the node keeps the last good payload.
            keep: resources that the policy in force still needs.
            salvaged: refused resources that are partly in force; the node keeps their new payloads.
        """
        held: dict[str, bytes] = {}
        for name, payload in candidate.resources.items():
            if name in refused and name in self.held and name not in salvaged:
                held[name] = self.held[name]
            elif name not in refused or name in salvaged:
                held[name] = payload
        for name in keep:
            if name not in held and name in self.held:
                held[name] = self.held[name]
        changes: dict[str, bytes | None] = {n: p for n, p in held.items() if self.held.get(n) != p}
        changes.update({n: None for n in self.held if n not in held})
        rejections = dict(candidate.rejected)
        for name, reason in refused.items():
            payload = candidate.resources.get(name, b"")
            rejections.setdefault(name, _rejection(name, sha256(payload), reason))
        rejected = [rejections[name] for name in sorted(rejections)]
        return Acceptance(candidate.version, held, changes, link_pb2.SyncAck(nonce=candidate.nonce, rejected=rejected))

    def accept(self, outcome: Acceptance) -> link_pb2.SyncRequest:
        """Record that an outcome is stored and in force. Returns the acknowledgement to send."""
        self.held, self.version = outcome.held, outcome.version
        return link_pb2.SyncRequest(ack=outcome.ack)

    def refuse(self, candidate: Candidate, reason: str) -> link_pb2.SyncRequest:
        """Refuse a candidate as a whole, for example because the disk is full. The old policy stays in force."""
        return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=candidate.nonce, refused=reason))


def _rejection(name: str, digest: bytes, reason: str) -> link_pb2.Rejection:
    return link_pb2.Rejection(name=name, digest=digest, reason=reason)


# ---- Sync, the control plane's end


@dataclass(frozen=True, slots=True)
class RegionPolicy:
    """The resources that one region should hold."""

    version: Version
    resources: dict[str, bytes]


class SyncSender:
    """What one node holds and what it lacks. Only one update is in flight at a time; the newest policy wins."""

    def __init__(self, hello: link_pb2.SyncHello) -> None:
        self._region = hello.node.region
        self._held = {ref.name: ref.digest for ref in hello.held}
        self.acked: Version = (hello.manifest.epoch, hello.manifest.number)
        self.rejected: dict[str, link_pb2.Rejection] = {}
        self.refused = ""
        """Why the node refused the last update as a whole; empty if it was accepted."""
        self._nonce = 0
        self._sent: tuple[str, RegionPolicy] | None = None
        self._offered: Version | None = None

    @property
    def in_flight(self) -> bool:
        """Whether an update is unacknowledged."""
        return self._sent is not None

    def next(self, policy: RegionPolicy) -> list[link_pb2.SyncResponse]:
        """Return the updates that bring the node to `policy`; empty if it is there or an update is in flight."""
        if self._sent is not None or policy.version == self._offered:
            return []
        digests = {name: sha256(payload) for name, payload in policy.resources.items()}
        if policy.version == self.acked and self._held == digests:
            return []
        chunks: list[link_pb2.Update] = [link_pb2.Update()]
        size = 0
        for name, payload in sorted(policy.resources.items()):
            if self._held.get(name) == digests[name]:
                continue
            if size + len(payload) > CHUNK_BYTES and chunks[-1].resources:
                chunks.append(link_pb2.Update())
                size = 0
            chunks[-1].resources.add(name=name, digest=digests[name], payload=payload)
            size += len(payload)
        last = chunks[-1]
        last.removed.extend(sorted(self._held.keys() - policy.resources.keys()))
        last.manifest.version.CopyFrom(version_message(policy.version))
        last.manifest.region = self._region
        last.manifest.entries.extend(link_pb2.ResourceRef(name=n, digest=d) for n, d in sorted(digests.items()))
        for chunk in chunks:
            self._nonce += 1
            chunk.nonce = str(self._nonce)
        self._sent = (last.nonce, policy)
        self._offered = policy.version
        return [link_pb2.SyncResponse(update=chunk) for chunk in chunks]

    def acknowledged(self, ack: link_pb2.SyncAck) -> bool:
        """Process an answer. Returns whether it completes the update in flight."""
        if self._sent is None or ack.nonce != self._sent[0]:
            return False
        _, policy = self._sent
        self._sent = None
        self.refused = ack.refused
        if ack.refused:
            return True
        self.acked = policy.version
        self.rejected = {r.name: r for r in ack.rejected}
        self._held = {n: sha256(p) for n, p in policy.resources.items() if n not in self.rejected}
        return True

    def retry(self) -> None:
        """Allow a refused update to be sent again: the node's disk may have room by now."""
        if self.refused:
            self._offered = None


# ---- Report, the node's end


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

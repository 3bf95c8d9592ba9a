"""Both ends of the link without I/O: what to send and what follows from what came.

Each class is one end of one stream direction. Streams may break at any instant; what a class holds afterwards is what the
next stream begins with.
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
"""Resources of one Update, about; one larger resource goes alone."""
WINDOW = 16
"""Reports that may be unacknowledged."""

Version = tuple[int, int]
"""(epoch, number) of a manifest."""


def version_message(version: Version) -> link_pb2.ManifestVersion:
    """(epoch, number) as a message."""
    return link_pb2.ManifestVersion(epoch=version[0], number=version[1])


class Peer(NamedTuple):
    """A node at the other end of the link."""

    region: str
    name: str
    incarnation: str = ""
    """Tells one process from the next under the same name."""
    software_version: str = ""
    trusted: Trusted = ()
    """Attributes of its agents that count as labels."""

    def message(self) -> link_pb2.NodeIdentity:
        """As it says hello."""
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
        """Undo `message`."""
        trusted: Trusted = "all"
        if not message.all_attributes_trusted:
            trusted = tuple(message.trusted_attributes)
        return cls(message.region, message.name, message.incarnation, message.software_version, trusted)


# ---- Sync, the node's end


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that came whole and may be put in force."""

    version: Version
    resources: dict[str, bytes]
    """Name → payload, digests verified. For a resource that came damaged: its last good payload, if there is one."""
    rejected: dict[str, link_pb2.Rejection]
    """What came damaged or not at all."""
    nonce: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A candidate as it will be in force."""

    version: Version
    held: dict[str, bytes]
    changes: dict[str, bytes | None]
    """What is to change on disk: name → payload, None to delete."""
    ack: link_pb2.SyncAck


class SyncReceiver:
    """What a node holds of policy, and how updates change it.

    Args:
        region: the node's own; a manifest for another one is refused.
        held: name → payload, from disk.
        version: of the manifest in force, None if there never was one.
    """

    def __init__(self, region: str, held: Mapping[str, bytes], version: Version | None) -> None:
        self._region = region
        self.held = dict(held)
        self.version = version
        self._staged: dict[str, bytes] = {}
        self._damaged: dict[str, link_pb2.Rejection] = {}
        self.ahead_of: Version | None = None
        """The control plane's own manifest, where it says that ours is newer or of another database."""

    def hello(self, node: Peer, renderers: frozenset[int]) -> link_pb2.SyncRequest:
        """The first message of a stream; what an earlier stream left unfinished is dropped."""
        self._staged, self._damaged = {}, {}
        self.ahead_of = None
        hello = link_pb2.SyncHello(node=node.message(), renderers=sorted(renderers))
        if self.version is not None:
            hello.manifest.CopyFrom(version_message(self.version))
        hello.held.extend(link_pb2.ResourceRef(name=n, digest=sha256(p)) for n, p in sorted(self.held.items()))
        return link_pb2.SyncRequest(hello=hello)

    def receive(self, update: link_pb2.Update) -> link_pb2.SyncRequest | Candidate:
        """Take one Update.

        Returns:
            An answer to send at once (an unfinished update, or one that is refused as a whole), or the candidate: put it
            in force by way of `outcome` and `accept`.
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
            refused = f"manifest is for region {manifest.region}, this is {self._region}"
        elif self.version is not None and version < self.version:
            refused = f"manifest {version} is older than {self.version}, which is in force"
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
        """What follows if the candidate is put in force, but for what its content does not allow. Changes nothing.

        Args:
            refused: name → why it could not be read; its last good form is what stays held.
            keep: names that what is in force still needs.
            salvaged: of `refused`, those of which something is in force all the same: they are held.
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
        """It is in force (and stored). Gives the acknowledgement to send."""
        self.held, self.version = outcome.held, outcome.version
        return link_pb2.SyncRequest(ack=outcome.ack)

    def refuse(self, candidate: Candidate, reason: str) -> link_pb2.SyncRequest:
        """The candidate could not be put in force at all (disk full); what was in force stays."""
        return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=candidate.nonce, refused=reason))


def _rejection(name: str, digest: bytes, reason: str) -> link_pb2.Rejection:
    return link_pb2.Rejection(name=name, digest=digest, reason=reason)


# ---- Sync, the control plane's end


@dataclass(frozen=True, slots=True)
class RegionPolicy:
    """What one region is to hold."""

    version: Version
    resources: dict[str, bytes]


class SyncSender:
    """What one node has been sent, and what it lacks. One update is under way at a time; the newest policy wins."""

    def __init__(self, hello: link_pb2.SyncHello) -> None:
        self._region = hello.node.region
        self._held = {ref.name: ref.digest for ref in hello.held}
        self.acked: Version = (hello.manifest.epoch, hello.manifest.number)
        self.rejected: dict[str, link_pb2.Rejection] = {}
        self.refused = ""
        """Why the node refused the last update as a whole; empty if it did not."""
        self._nonce = 0
        self._sent: tuple[str, RegionPolicy] | None = None
        self._offered: Version | None = None

    @property
    def waiting(self) -> bool:
        """An update is on its way and not acknowledged."""
        return self._sent is not None

    def next(self, policy: RegionPolicy) -> list[link_pb2.SyncResponse]:
        """The updates that bring the node to `policy`; empty if it is there, or one is under way."""
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
        """Take an answer. True if it ended the update under way."""
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
        """What the node refused as a whole may be sent again: its disk may have room by now."""
        if self.refused:
            self._offered = None


# ---- Report, the node's end


_MOST_HURRIED = 5
"""What differs after so many rounds is looked into without hurry."""
_LISTED_BYTES = 32
"""Of one agent in a listing, about."""


@dataclass(slots=True)
class _Flight:
    agents: set[bytes] = field(default_factory=set)
    removed: set[bytes] = field(default_factory=set)
    forgotten: set[bytes] = field(default_factory=set)
    bodies: set[bytes] = field(default_factory=set)
    verifies: bool = False
    """It has the sums."""


@dataclass(slots=True)
class ReportSender:
    """Which agents the control plane has yet to hear of: at most one entry an agent, in the order of first change."""

    max_agents: int
    changed: dict[bytes, None] = field(default_factory=dict)
    removed: dict[bytes, None] = field(default_factory=dict)
    bodies: dict[bytes, None] = field(default_factory=dict)
    """Digests of effective configs that the control plane wants."""
    listings: dict[int, None] = field(default_factory=dict)
    forgotten: dict[bytes, None] = field(default_factory=dict)
    """Agents that are no longer held here, and stay known above."""
    verify: bool = True
    """The shards should go up once nothing waits."""
    agreed: bool = False
    """Both ends were found to hold the same since the stream began."""
    disagreements: int = 0
    """How often in a row they were found not to."""
    tell: bool = True
    """The node's own status should go up, whatever else there is."""
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _sequence: int = 0
    _window: int = 1
    """How much the other end takes at once: it says so with its first acknowledgement."""

    def __len__(self) -> int:
        return len(self.changed) + len(self.removed) + len(self.forgotten)

    @property
    def hurries(self) -> bool:
        """Whether what waits should go at the speed of the link: a backlog, or one end that is being updated."""
        catches_up = not self.agreed and self.disagreements < _MOST_HURRIED
        return len(self) >= self.max_agents or catches_up

    def is_known(self, uid: bytes) -> bool:
        """Whether the control plane has acknowledged all that was to be said of an agent."""
        waits = uid in self.changed or uid in self.removed or uid in self.forgotten
        return self.agreed and not waits and not any(uid in flight.agents for flight in self._flights.values())

    @property
    def in_flight(self) -> int:
        """Reports sent and not acknowledged."""
        return len(self._flights)

    def change(self, uid: bytes) -> None:
        """An agent changed."""
        self.removed.pop(uid, None)
        self.forgotten.pop(uid, None)
        self.changed[uid] = None
        self.verify = True

    def remove(self, uid: bytes) -> None:
        """An agent is no longer held."""
        self.changed.pop(uid, None)
        self.forgotten.pop(uid, None)
        self.removed[uid] = None
        self.verify = True

    def forget(self, uid: bytes) -> None:
        """An agent is no longer held here; the control plane is to go on knowing it."""
        self.remove(uid)
        del self.removed[uid]
        self.forgotten[uid] = None

    def restart(self) -> None:
        """A new stream begins: what was in flight waits again, behind nothing."""
        for flight in reversed(self._flights.values()):  # of an agent the newest word counts
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
        self.verify = self.tell = True
        self.agreed, self.disagreements = False, 0

    def next(
        self,
        *,
        state: Callable[[bytes], bytes | None],
        body: Callable[[bytes], bytes | None],
        listings: Callable[[Collection[int]], Mapping[int, Mapping[bytes, int]]],
        shards: Callable[[], list[int]],
    ) -> link_pb2.StatusReport | None:
        """The next report, or None if nothing waits or the window is full.

        Args:
            state: uid → serialised AgentState now, None if gone meanwhile.
            body: digest → serialised EffectiveConfig, None if it is not here any more.
            listings: shards → shard → uid → digest.
            shards: the 256 sums of the states as they were last given.
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
        for shard, listed in listings(list(self.listings)).items() if self.listings else ():
            if size >= CHUNK_BYTES:
                break
            del self.listings[shard]
            agents = [link_pb2.AgentDigest(instance_uid=u, digest=d) for u, d in listed.items()]
            report.listings.add(shard=shard, agents=agents)
            size += _LISTED_BYTES * len(agents)
        if self.verify and not self:
            # Reports are taken in their order: when this one was, both ends should have the same sums.
            report.shards.extend(shards())
            flight.verifies, self.verify = True, False
        if not report.ListFields() and not self.tell:
            return None
        self.tell = False
        self._sequence += 1
        report.sequence = self._sequence
        self._flights[self._sequence] = flight
        return report

    def acknowledged(self, ack: link_pb2.ReportAck) -> None:
        """Take an answer; `released` is for the caller.

        Raises:
            UpstreamError: it acknowledges what was never sent.
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

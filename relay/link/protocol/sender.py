"""The control plane's end of Sync."""

from __future__ import annotations

from dataclasses import dataclass

from relay.auth.signing import Signed
from relay.ids import sha256
from relay.link.protocol.peer import CHUNK_BYTES, Version
from relay.link.protocol.signatures import manifest_of, signed_message
from relay.pb.relay.v1 import link_pb2


@dataclass(frozen=True, slots=True)
class RegionPolicy:
    """The resources that one region should hold."""

    version: Version
    resources: dict[str, bytes]
    manifest: Signed | None = None
    """Its `manifest_payload`, signed; None if policy is not signed."""


class SyncSender:
    """What one node holds and what it lacks. Only one update is in flight at a time; the newest policy wins."""

    def __init__(self, hello: link_pb2.SyncHello) -> None:
        self._region = hello.node.region
        self._held = {ref.name: ref.digest for ref in hello.held}
        self.acked: Version = (hello.manifest.epoch, hello.manifest.number)
        self.rejected: dict[str, link_pb2.Rejection] = {}
        self.refused = ""
        """Why the node refused the last update as a whole; empty if it was accepted."""
        self.knows_signatures = hello.HasField("key_set")
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
        if policy.manifest is not None and self.knows_signatures:
            last.signed_manifest.CopyFrom(signed_message(policy.manifest))
        else:
            last.manifest.CopyFrom(manifest_of(self._region, policy.version, digests))
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

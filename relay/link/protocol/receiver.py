"""The node's end of Sync."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relay.auth.key_sets import RESOURCE, KeyChain, signed_of
from relay.auth.signing import Purpose, Signed
from relay.ids import sha256
from relay.link.protocol.peer import Peer, Version, version_message
from relay.link.protocol.signatures import entries_of, needed, opened, parsed, version_of
from relay.pb.relay.v1 import link_pb2
from relay.policy.access import is_access

_MAX_AHEAD_MS = 300_000
"""A Freshness further ahead of our clock than this counts as issued so far ahead."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that arrived completely and may be put in force."""

    version: Version
    resources: dict[str, bytes]
    """Name → payload, with verified digests. A damaged resource keeps its last good payload, if there is one."""
    rejected: dict[str, link_pb2.Rejection]
    """Resources that arrived damaged or not at all."""
    nonce: str
    chain: KeyChain | None = None
    """The key sets that came with it."""
    manifest: Signed | None = None
    """None if policy is not signed."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What is in force once a candidate is accepted."""

    version: Version
    held: dict[str, bytes]
    changes: dict[str, bytes | None]
    """Changes to write to disk: name → payload, None to delete."""
    ack: link_pb2.SyncAck
    chain: KeyChain | None = None
    manifests: tuple[Signed, ...] = ()
    """The manifest in force, and former ones that vouch for resources kept from them."""
    is_whole: bool = True
    """Every resource of the manifest arrived."""


class SyncReceiver:
    """The policy resources that a node holds, and how updates change them.

    Args:
        region: the node's region; a manifest for another one is refused.
        held: name → payload, from disk.
        version: version of the manifest in force; None if there never was one.
        chain: the key sets that the node trusts; None if it has not seen any.
        root: id of the root that must have signed the first key set; empty to trust the first one seen.
        manifests: from `Acceptance`.
    """

    def __init__(
        self,
        region: str,
        held: Mapping[str, bytes],
        version: Version | None,
        *,
        chain: KeyChain | None = None,
        root: str = "",
        manifests: tuple[Signed, ...] = (),
    ) -> None:
        self._region = region
        self._root = root
        self.chain = chain
        self.manifests = manifests
        self._issued_ms = 0
        """When the newest accepted Freshness was issued, by the control plane's clock."""
        self.held = dict(held)
        self.version = version
        self.floor = version
        """Nothing older is accepted. It is ahead of `version` where a candidate was only partly put in force."""
        self._is_whole = True
        """Every resource of the manifest in force arrived."""
        self._staged: dict[str, bytes] = {}
        self._damaged: dict[str, link_pb2.Rejection] = {}
        self.refusal = ""
        """Why the last Update was refused as a whole; empty if it was accepted."""
        self.is_foreign = False
        """Its key sets were those of another control plane."""
        self.ahead_of: Version | None = None
        """The control plane's manifest version, if it says that ours is newer or from another database."""

    def hello(self, node: Peer, renderers: frozenset[int]) -> link_pb2.SyncRequest:
        """Return the first message of a stream. Drops the unfinished updates of an earlier stream."""
        self._staged, self._damaged = {}, {}
        self.ahead_of = None
        self.refusal, self.is_foreign = "", False
        key_set = self.chain.current.version if self.chain is not None else 0
        hello = link_pb2.SyncHello(node=node.message(), renderers=sorted(renderers), key_set=key_set)
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
        if not update.HasField("manifest") and not update.HasField("signed_manifest"):
            return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=update.nonce))
        staged, self._staged = self._staged, {}
        damaged, self._damaged = self._damaged, {}
        try:
            chain = self._judged(staged.get(RESOURCE))
            manifest, signed = self._manifest(update, chain)
        except ValueError as error:
            return self._refused(update, str(error))
        version = version_of(manifest.version)
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
        if signed is not None and (missing := sorted(filter(is_access, rejected))):
            # Held back by somebody, perhaps: a revocation must not be lost among what is in force.
            return self._refused(update, f"{missing[0]} did not arrive as it was signed")
        return Candidate(version, resources, rejected, update.nonce, chain, signed)

    def _refused(self, update: link_pb2.Update, reason: str) -> link_pb2.SyncRequest:
        self.refusal = reason
        return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=update.nonce, refused=reason))

    def _judged(self, payload: bytes | None) -> KeyChain | None:
        """The key sets to trust with those that came. They are judged first, by their roots. Raises ValueError."""
        if payload is None:
            if self.chain is None and self._root:
                raise ValueError("no key set came with it")
            return self.chain
        try:
            signed = signed_of(payload)
            return KeyChain.of(signed, self._root) if self.chain is None else self.chain.extended(signed)
        except ValueError as error:
            self.is_foreign = True
            raise ValueError(f"this is not the control plane that this node trusts: {error}") from None

    def _manifest(self, update: link_pb2.Update, chain: KeyChain | None) -> tuple[link_pb2.Manifest, Signed | None]:
        """The manifest of an Update, if it may follow the one in force. Raises ValueError."""
        signed: Signed | None = None
        if chain is not None and chain.current.signs_policy:
            signed = opened(Purpose.MANIFEST, update.signed_manifest, chain)
            manifest = parsed(link_pb2.Manifest(), signed.payload)
        elif update.HasField("manifest"):
            manifest = update.manifest
        else:
            manifest = parsed(link_pb2.Manifest(), update.signed_manifest.payload)
        version = version_of(manifest.version)
        if manifest.region != self._region:
            raise ValueError(f"the manifest is for region {manifest.region}, but this node is in {self._region}")
        if self.floor is not None and version < self.floor:
            raise ValueError(f"the manifest {version} is older than {self.floor}, which is in force")
        if signed is not None and self.manifests and version == self.version:
            held = parsed(link_pb2.Manifest(), self.manifests[0].payload)
            if entries_of(held) != entries_of(manifest):
                raise ValueError(f"the manifest {version} differs from the one of this number, which is in force")
        return manifest, signed

    def confirms(self, response: link_pb2.SyncResponse, now_ms: int) -> int | None:
        """When a Freshness says that the policy in force was the newest.

        Args:
            now_ms: Unix milliseconds of our clock.

        Returns:
            Unix milliseconds by the control plane's clock, 0 if it is not signed and so proves no time; None if it is about
            another policy, or is not newer than the last one.

        Raises:
            ValueError: it is not signed as it should be, or is for another region.
        """
        is_signed = self.chain is not None and self.chain.current.signs_policy
        if self.chain is not None and is_signed:
            payload = opened(Purpose.FRESHNESS, response.signed_freshness, self.chain).payload
            freshness = parsed(link_pb2.Freshness(), payload)
            if freshness.region != self._region:
                raise ValueError(f"the Freshness is for region {freshness.region}, but this node is in {self._region}")
        else:
            freshness = response.freshness
        if version_of(freshness.version) != self.version or (
            is_signed and freshness.issued_at_unix_ms <= self._issued_ms
        ):
            return None
        if not is_signed:
            return 0
        # A control plane whose clock was wrong once is not ignored until that time has come.
        self._issued_ms = min(freshness.issued_at_unix_ms, now_ms + _MAX_AHEAD_MS)
        return freshness.issued_at_unix_ms if self._is_whole else None

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
        ack = link_pb2.SyncAck(nonce=candidate.nonce, rejected=rejected)
        manifests: tuple[Signed, ...] = ()
        if candidate.manifest is not None:
            former = tuple(m for m in self.manifests if m.payload != candidate.manifest.payload)
            manifests = needed(held, (candidate.manifest, *former))
        is_whole = not candidate.rejected
        return Acceptance(candidate.version, held, changes, ack, candidate.chain, manifests, is_whole)

    def accept(self, outcome: Acceptance) -> link_pb2.SyncRequest:
        """Record that an outcome is stored and in force. Returns the acknowledgement to send."""
        self.refusal, self.is_foreign = "", False
        self.held, self.version = outcome.held, outcome.version
        self.chain, self.manifests = outcome.chain, outcome.manifests
        self.floor, self._is_whole = outcome.version, outcome.is_whole
        return link_pb2.SyncRequest(ack=outcome.ack)

    def refuse(self, candidate: Candidate, reason: str) -> link_pb2.SyncRequest:
        """Refuse a candidate as a whole, for example because the disk is full. The old policy stays in force."""
        return link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=candidate.nonce, refused=reason))


def _rejection(name: str, digest: bytes, reason: str) -> link_pb2.Rejection:
    return link_pb2.Rejection(name=name, digest=digest, reason=reason)

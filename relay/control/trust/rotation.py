"""The keys of a control plane, as they are stored, and how they change. Values and pure rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from relay.auth.key_sets import KeyChain, KeySet, read
from relay.auth.signing import Signed

CA, FORMER_CA, MANIFEST = "ca-key", "former-ca-key", "manifest-key"
DOWNLOADS, FORMER_DOWNLOADS = "download-keys", "former-download-keys"
PROPOSED, FORMER = "proposed-", "former-"
"""Before the name of a secret that is not in use until a root has signed, and of one that is no longer in use."""


class Rotation(StrEnum):
    """What can be replaced."""

    MANIFEST = "manifest"
    """The key that signs policy."""
    CA = "ca"
    """The CA of nodes and of the link."""
    ROOT = "root"
    """The key that signs key sets."""
    DOWNLOADS = "downloads"
    """The secret that all download keys are derived from."""
    MASTER = "master"
    """The key that encrypts all secrets of the database."""

    @property
    def is_signed(self) -> bool:
        """Whether a root must sign it."""
        return self in (Rotation.MANIFEST, Rotation.CA, Rotation.ROOT)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Key sets that are in force once a root has signed all of them."""

    rotation: Rotation
    payloads: tuple[bytes, ...]

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {"rotation": self.rotation.value, "payloads": [payload.decode() for payload in self.payloads]}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Proposal:
        """The reverse of `plain`."""
        return cls(Rotation(value["rotation"]), tuple(payload.encode() for payload in value["payloads"]))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a control plane."""

    key_sets: tuple[Signed, ...] = ()
    """All key sets with their signatures, oldest first; empty before they are made."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    """Name → private key or secret, encrypted with the master key."""
    proposal: Proposal | None = None
    closing: tuple[Signed, ...] = ()
    """The key set without former CAs, signed in advance: in force once every node has a certificate of the first CA."""
    rotated_ms: int = 0
    """When the CA was last replaced."""
    downloads_ms: int = 0
    """When the secret of download keys was last replaced."""
    generations: Mapping[str, int] = field(default_factory=dict)
    """Region → how often its download key was replaced because a node was revoked."""

    def with_generation(self, region: str) -> Keys:
        """With another download key for a region."""
        return dataclasses.replace(self, generations={**self.generations, region: self.generations.get(region, 0) + 1})

    def with_proposal(self, proposal: Proposal, secrets: Mapping[str, bytes]) -> Keys:
        """With key sets that wait for a signature, and the secrets that go with them; instead of those that waited."""
        kept = {name: secret for name, secret in self.secrets.items() if not name.startswith(PROPOSED)}
        proposed = {f"{PROPOSED}{name}": secret for name, secret in secrets.items()}
        return dataclasses.replace(self, secrets={**kept, **proposed}, proposal=proposal)

    def adopted(self, rotation: Rotation, signed: Sequence[Signed], now_ms: int) -> Keys:
        """With the proposed key sets, which a root has signed.

        Raises:
            ValueError: they are not the proposed ones, or are not signed as they must be.
        """
        proposal = self.proposal
        if proposal is None or proposal.rotation is not rotation:
            raise ValueError(f"no key set for a rotation of {rotation.value} waits for a signature; begin again")
        if {item.payload for item in signed} != set(proposal.payloads):
            raise ValueError("other key sets were signed than those that wait: somebody else began a rotation")
        by_payload = [[item for item in signed if item.payload == payload] for payload in proposal.payloads]
        chain = KeyChain.of(self.key_sets).extended(by_payload[0])
        closing: tuple[Signed, ...] = ()
        if len(by_payload) > 1:
            closing = tuple(by_payload[1])
            chain.extended(closing)
        secrets = dict(self.secrets)
        if rotation is Rotation.CA and CA in secrets:  # servers' certificates are of the one that all nodes trust
            secrets.setdefault(FORMER_CA, secrets[CA])
        for name in [name for name in secrets if name.startswith(PROPOSED)]:
            secrets[name.removeprefix(PROPOSED)] = secrets.pop(name)
        return dataclasses.replace(
            self,
            key_sets=chain.signed,
            secrets=secrets,
            proposal=None,
            closing=closing,
            rotated_ms=now_ms if rotation is Rotation.CA else self.rotated_ms,
        )

    def closed(self) -> Keys:
        """Without former CAs."""
        secrets = {name: secret for name, secret in self.secrets.items() if name != FORMER_CA}
        chain = KeyChain.of(self.key_sets).extended(self.closing)
        return dataclasses.replace(self, key_sets=chain.signed, secrets=secrets, closing=())

    def plain(self) -> dict[str, Any]:
        """All but key sets and secrets as plain values, for the database."""
        return {
            "proposal": self.proposal.plain() if self.proposal is not None else None,
            "closing": [item.plain() for item in self.closing],
            "rotated_ms": self.rotated_ms,
            "downloads_ms": self.downloads_ms,
            "generations": dict(self.generations),
        }

    @classmethod
    def from_plain(cls, key_sets: Iterable[Any], value: Mapping[str, Any], secrets: Mapping[str, bytes]) -> Keys:
        """The reverse of `plain`.

        Raises:
            ValueError: a signed payload is not one.
        """
        proposal = value.get("proposal")
        return cls(
            tuple(Signed.from_plain(item) for item in key_sets),
            secrets,
            Proposal.from_plain(proposal) if proposal is not None else None,
            tuple(Signed.from_plain(item) for item in value.get("closing", ())),
            value.get("rotated_ms", 0),
            value.get("downloads_ms", 0),
            value.get("generations", {}),
        )


def following(
    current: KeySet,
    *,
    roots: Mapping[str, bytes] | None = None,
    manifests: Mapping[str, bytes] | None = None,
    authority: str = "",
) -> tuple[bytes, ...]:
    """The payloads of the next key set, and of the one after it where that ends the trust in former CAs.

    Args:
        roots: instead of the current ones.
        manifests: instead of the current ones.
        authority: certificate of the CA to use from then on, PEM.
    """
    following = KeySet(
        current.version + 1,
        current.trust_domain,
        current.roots if roots is None else roots,
        (authority, *current.authorities) if authority else current.authorities,
        current.manifests if manifests is None else manifests,
    )
    closing = dataclasses.replace(following, version=following.version + 1, authorities=following.authorities[:1])
    return (following.payload(), *([closing.payload()] if len(following.authorities) > 1 else []))


def sealed_as(name: str) -> str:
    """The name under which a secret was encrypted: its own, before its time and after it."""
    return name.removeprefix(PROPOSED).removeprefix(FORMER)


def version_of(signed: Signed) -> int:
    """The version of a key set."""
    return read(signed.payload).version

"""Who may connect, as policy. It is read apart from the rest, so that a revocation is in force before anything else.

- `ApiKeys/00` to `ApiKeys/ff`: agents' keys, by the first byte of their digests: a change of one sends 1/256 of them.
- `Revocations/agents`: credentials of agents that are refused.
- `Access/readers`: people's tokens that nodes accept for reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, ValidationError

from relay.documents import Scalar, canonical_json
from relay.policy.model import Model

LEEWAY_MS = 60_000
"""How far clocks may be apart: keys and certificates are accepted for so long after their end."""
PREFIX_BYTES = 5
"""So many bytes of its digest name a key; the control plane makes no two keys that begin alike."""
API_KEYS, REVOCATIONS, READERS = "ApiKeys", "Revocations/agents", "Access/readers"
"""A kind of resources, and the names of two others."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def is_access(name: str) -> bool:
    """Whether a resource says who may connect."""
    return name in (REVOCATIONS, READERS) or name.startswith(f"{API_KEYS}/")


@dataclass(frozen=True, slots=True)
class AgentKey:
    """An API key, as nodes know it."""

    digest: bytes
    """SHA-256 of the secret."""
    subject: str
    is_single: bool
    """Whether it is for one agent, and so proves its id."""
    labels: Mapping[str, Scalar]
    refused_from_ms: int
    """Unix milliseconds, leeway included."""


class PublishedKey(Model):
    """An API key in a resource."""

    subject: str = Field(min_length=1, max_length=256)
    single: bool
    labels: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=32)
    refused_from_ms: int


class PublishedKeys(Model):
    """The keys whose digests begin with the same byte."""

    keys: dict[Digest, PublishedKey]

    def agent_keys(self) -> dict[bytes, AgentKey]:
        """The keys by the first bytes of their digests."""
        keys = (
            AgentKey(bytes.fromhex(digest), key.subject, key.single, key.labels, key.refused_from_ms)
            for digest, key in self.keys.items()
        )
        return {key.digest[:PREFIX_BYTES]: key for key in keys}


class PublishedRevocation(Model):
    """Credentials that are refused."""

    kind: str
    value: str = Field(min_length=1)


class PublishedRevocations(Model):
    """All revocations of agents' credentials."""

    revocations: list[PublishedRevocation]


class Reader(Model):
    """A person's token that nodes accept for reading."""

    owner: str
    scope: dict[str, str] = Field(default_factory=dict)
    expires_ms: int


class Readers(Model):
    """The tokens that nodes accept for reading."""

    tokens: dict[Digest, Reader]


def keys_resource(keys: Sequence[AgentKey]) -> tuple[str, bytes]:
    """(resource name, payload) of keys whose digests begin with the same byte; at least one."""
    published = {
        key.digest.hex(): PublishedKey(
            subject=key.subject, single=key.is_single, labels=dict(key.labels), refused_from_ms=key.refused_from_ms
        )
        for key in keys
    }
    return f"{API_KEYS}/{keys[0].digest[:1].hex()}", canonical_json(PublishedKeys(keys=published).model_dump())


def revocations_resource(revoked: Iterable[tuple[str, str]]) -> tuple[str, bytes]:
    """(resource name, payload) of revocations: (kind, value) of each."""
    listed = [PublishedRevocation(kind=kind, value=value) for kind, value in sorted(revoked)]
    return REVOCATIONS, canonical_json(PublishedRevocations(revocations=listed).model_dump())


def readers_resource(readers: Mapping[str, Reader]) -> tuple[str, bytes]:
    """(resource name, payload) of the people who may read at nodes, by the digest of their token in hex."""
    return READERS, canonical_json(Readers(tokens=dict(readers)).model_dump())


@dataclass(frozen=True, slots=True)
class HeldKeys:
    """Keys, and the payload that they came in."""

    payload: bytes
    keys: Mapping[bytes, AgentKey]
    """By the first bytes of their digests."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect, as of one manifest."""

    shards: Mapping[str, HeldKeys] = field(default_factory=dict)
    """By the first byte of the digests, in hex."""
    revoked: frozenset[tuple[str, str]] = frozenset()
    """(kind, value) of every revocation."""
    readers: Mapping[bytes, Reader] = field(default_factory=dict)
    """SHA-256 of a person's token → who it is."""

    def key(self, prefix: bytes) -> AgentKey | None:
        """The key whose digest begins so; None if there is none."""
        shard = self.shards.get(prefix[:1].hex())
        return shard.keys.get(prefix) if shard is not None else None


def read_access(resources: Mapping[str, bytes], previous: Access) -> tuple[Access, dict[str, str]]:
    """Read the resources that say who may connect. The others are not looked at.

    Args:
        resources: name → payload. The caller has verified the digests.
        previous: what was in force until now; what cannot be read stays as it was.

    Returns:
        (who may connect, resource name → why it was rejected).
    """
    shards: dict[str, HeldKeys] = {}
    revoked: frozenset[tuple[str, str]] = frozenset()
    readers: Mapping[bytes, Reader] = {}
    rejected: dict[str, str] = {}
    for name, payload in resources.items():
        kind, _, key = name.partition("/")
        try:
            if kind == API_KEYS:
                known = previous.shards.get(key)
                is_known = known is not None and known.payload == payload
                shards[key] = known if known is not None and is_known else _shard(key, payload)
            elif name == REVOCATIONS:
                listed = PublishedRevocations.model_validate_json(payload).revocations
                revoked = frozenset((revocation.kind, revocation.value) for revocation in listed)
            elif name == READERS:
                tokens = Readers.model_validate_json(payload).tokens
                readers = {bytes.fromhex(digest): reader for digest, reader in tokens.items()}
        except ValidationError as error:
            rejected[name] = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())[:500]
            if kind == API_KEYS and key in previous.shards:
                shards[key] = previous.shards[key]
            revoked = previous.revoked if name == REVOCATIONS else revoked
            readers = previous.readers if name == READERS else readers
    return Access(shards, revoked, readers), rejected


def _shard(key: str, payload: bytes) -> HeldKeys:
    keys = PublishedKeys.model_validate_json(payload).agent_keys()
    return HeldKeys(payload, {prefix: found for prefix, found in keys.items() if prefix[:1].hex() == key})

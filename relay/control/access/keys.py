"""Agents' API keys: what is kept of them, and how they are sent to nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.auth.secrets import id_of
from relay.documents import Scalar
from relay.errors import NotFound
from relay.policy.access import LEEWAY_MS, AgentKey, keys_resource


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, without the secret."""

    digest: bytes
    """SHA-256 of the secret."""
    subject: str
    """The agent, or the fleet that shares it."""
    is_single: bool
    """Whether it is for one agent, and so proves its id."""
    labels: Mapping[str, Scalar]
    """Labels that its agents have."""
    regions: tuple[str, ...]
    """Where it is accepted; empty for every region."""
    created_ms: int
    created_by: str
    expires_ms: int
    replaced_by: str = ""
    """Id of the key that it was rotated to."""

    @property
    def id(self) -> str:
        """The name by which people refer to it."""
        return id_of(self.digest)

    @property
    def refused_from_ms(self) -> int:
        """From when nodes refuse it. Clocks differ, so a key outlives its end a little, but not if it was replaced."""
        return self.expires_ms + (0 if self.replaced_by else LEEWAY_MS)

    @property
    def published(self) -> AgentKey:
        """What nodes need to know of it."""
        return AgentKey(self.digest, self.subject, self.is_single, self.labels, self.refused_from_ms)

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {
            "digest": self.digest.hex(),
            "subject": self.subject,
            "single": self.is_single,
            "labels": dict(self.labels),
            "regions": list(self.regions),
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "expires_ms": self.expires_ms,
            "replaced_by": self.replaced_by,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> ApiKey:
        """The reverse of `plain`."""
        return cls(
            bytes.fromhex(value["digest"]),
            value["subject"],
            value["single"],
            value["labels"],
            tuple(value["regions"]),
            value["created_ms"],
            value["created_by"],
            value["expires_ms"],
            value["replaced_by"],
        )


@dataclass(frozen=True, slots=True)
class KeyShard:
    """The keys whose digests begin with the same byte. A change of one key sends its shard to nodes, and no more."""

    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By id."""
    regions: frozenset[str] = frozenset()
    """Regions that any of them names."""
    _resources: dict[str, tuple[str, bytes] | None] = field(default_factory=dict, compare=False, repr=False)
    """Region, or nothing for those that no key names → its resource, once made."""

    def resource(self, region: str) -> tuple[str, bytes] | None:
        """(name, payload) for a region; None if no key is for it."""
        named = region if region in self.regions else ""
        if named not in self._resources:
            keys = [key.published for key in self.keys.values() if not key.regions or named in key.regions]
            self._resources[named] = keys_resource(keys) if keys else None
        return self._resources[named]


def _shard(keys: Mapping[str, ApiKey]) -> KeyShard:
    return KeyShard(keys, frozenset(region for key in keys.values() for region in key.regions))


_EMPTY = KeyShard()


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """All keys. Immutable: a change returns a new value that shares the shards it does not touch."""

    shards: Mapping[int, KeyShard] = field(default_factory=dict)
    """First byte of the digest → keys."""

    def __iter__(self) -> Iterator[ApiKey]:
        for shard in self.shards.values():
            yield from shard.keys.values()

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self.shards.values())

    def __contains__(self, key_id: str) -> bool:
        return self.get(key_id) is not None

    def get(self, key_id: str) -> ApiKey | None:
        """The key with an id."""
        try:
            shard = self.shards.get(int(key_id.removeprefix("key-")[:2], 16))
        except ValueError:
            return None
        return shard.keys.get(key_id) if shard is not None else None

    def find(self, key_id: str) -> ApiKey:
        """The key with an id.

        Raises:
            NotFound: there is none.
        """
        key = self.get(key_id)
        if key is None:
            raise NotFound(f"there is no API key {key_id}")
        return key

    def put(self, keys: Iterable[ApiKey]) -> ApiKeys:
        """With these keys added or replaced."""
        changed: dict[int, dict[str, ApiKey]] = {}
        for key in keys:
            number = key.digest[0]
            if number not in changed:
                changed[number] = dict(self.shards[number].keys) if number in self.shards else {}
            changed[number][key.id] = key
        return ApiKeys({**self.shards, **{number: _shard(keys) for number, keys in changed.items()}})

    def without(self, ids: Iterable[str]) -> ApiKeys:
        """Without the keys with these ids."""
        shards = dict(self.shards)
        for key in [key for i in ids if (key := self.get(i)) is not None]:
            number = key.digest[0]
            kept = {k: v for k, v in shards[number].keys.items() if k != key.id}
            if kept:
                shards[number] = _shard(kept)
            else:
                del shards[number]
        return ApiKeys(shards)

    def changed_shards(self, after: ApiKeys) -> Iterator[tuple[Mapping[str, ApiKey], Mapping[str, ApiKey]]]:
        """The keys by id, before and after, of every shard that differs."""
        for number in self.shards.keys() | after.shards.keys():
            old, new = self.shards.get(number, _EMPTY), after.shards.get(number, _EMPTY)
            if old is not new:
                yield old.keys, new.keys

    def resources(self, region: str) -> dict[str, bytes]:
        """What a region is told: resource name → payload."""
        return dict(made for shard in self.shards.values() if (made := shard.resource(region)) is not None)

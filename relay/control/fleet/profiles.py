"""Agent descriptions, split into attributes that many agents share and values of single agents.

Apart from the names in them, a million agents have a few hundred distinct descriptions. Selectors are then evaluated
once for all agents that share a description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from relay.documents import Scalar
from relay.fleet.facts import NO_PROOF, Proof, Trusted, labels_of
from relay.opamp.identity import value_of
from relay.pb.opamp.v1 import anyvalue_pb2
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.selector import Facts

_MAX_SHARED = 256
"""A key with more values than this identifies single agents."""
_MAX_KEYS = 1_000
_MAX_BYTES = 256
"""Longer attributes are not shared: somebody who invents many of them would fill the memory."""
_MAX_ATTRIBUTES = 20_000
_MAX_PROFILES = 50_000
"""Beyond these limits nothing new is shared, so that agents which invent keys and values cannot fill the memory."""
Own = tuple[Any, ...]
"""The values that an agent does not share, in the order of its profile's `own`."""


class _Identity(NamedTuple):
    """What defines a profile."""

    region: str
    trusted: Trusted
    proof: Proof
    shared: tuple[bytes, ...]
    """Serialised attributes, one per key."""
    own: tuple[tuple[str, type], ...]
    """Keys of the other attributes and the types of their values: only plain values can be labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What agents of one region have in common."""

    region: str
    labels: Mapping[str, Any]
    attributes: Mapping[str, Any]
    own: tuple[str, ...]
    """Keys of the attributes whose values are not shared."""
    own_labels: frozenset[str]
    """Those of them that are also labels."""
    id_counts: bool
    """Whether selectors may go by agent ids; see `Facts`."""
    identity: _Identity

    def facts(self, agent_id: str, own: Own) -> Facts:
        """What selectors match against for an agent of this profile."""
        if not self.own:
            return Facts(agent_id, self.labels, self.attributes, self.id_counts)
        values = dict(zip(self.own, own, strict=True))
        labels = {key: values[key] for key in self.own_labels}
        return Facts(agent_id, {**labels, **self.labels}, {**self.attributes, **values}, self.id_counts)

    def shared(self) -> Facts:
        """The facts that all agents of this profile share."""
        return Facts("", self.labels, self.attributes)

    def tells(self, keys: Set[str]) -> bool:
        """Whether `shared` suffices for selectors that mention these keys."""
        return keys.isdisjoint(self.own)

    def value(self, key: str, own: Own) -> Any:
        """An attribute of an agent; None if it has none with this key."""
        return own[self.own.index(key)] if key in self.own else self.attributes.get(key)


class Profiles:
    """Creates each profile once."""

    def __init__(self) -> None:
        self._shared: dict[bytes, str] = {}
        """Serialised attribute → its key, for attributes that may be shared."""
        self._of_key: dict[str, set[bytes]] = {}
        """Key → its attributes in `_shared`."""
        self._own_keys: set[str] = set()
        """Keys that identify single agents."""
        self._profiles: dict[_Identity, Profile] = {}

    def split(self, description: bytes, region: str, trusted: Trusted, proof: Proof = NO_PROOF) -> tuple[Profile, Own]:
        """Split a description into a profile and the agent's own values.

        Args:
            description: a serialised AgentDescription.
            region: the region of its node.
            trusted: attributes that its node accepts as labels.
            proof: what its credential proves.

        Raises:
            DecodeError: it cannot be read.
        """
        message = pb.AgentDescription.FromString(description)
        shared: dict[str, bytes] = {}
        own: dict[str, Any] = {}
        self._sort_attributes(message.non_identifying_attributes, shared, own)
        self._sort_attributes(message.identifying_attributes, shared, own)
        # Sorted, because an agent may send its attributes in a different order each time.
        own_items = sorted(own.items(), key=itemgetter(0))
        kinds = tuple([(key, type(value)) for key, value in own_items])
        identity = _Identity(region, trusted, proof, tuple(sorted(shared.values())), kinds)
        return self._profile(identity), tuple([value for _, value in own_items])

    def trusting(self, profile: Profile, trusted: Trusted) -> Profile:
        """Return the same profile for other trusted attributes."""
        return self._profile(profile.identity._replace(trusted=trusted))

    def _sort_attributes(
        self, attributes: Iterable[anyvalue_pb2.KeyValue], shared: dict[str, bytes], own: dict[str, Any]
    ) -> None:
        """Add attributes to `shared` or `own`. The last of several with one key wins."""
        for attribute in attributes:
            raw = attribute.SerializeToString()
            key = self._shared.get(raw)
            if key is None:
                key, value = attribute.key, value_of(attribute.value)
                if not self._may_be_shared(key, value, len(raw)):
                    own[key] = value
                    shared.pop(key, None)
                    continue
                self._shared[raw] = key
                self._of_key.setdefault(key, set()).add(raw)
            shared[key] = raw
            own.pop(key, None)

    def _may_be_shared(self, key: str, value: Any, size: int) -> bool:
        if key in self._own_keys or not isinstance(value, Scalar):
            return False
        if size > _MAX_BYTES or len(self._shared) >= _MAX_ATTRIBUTES:
            return False
        values = self._of_key.get(key, ())
        if len(values) >= _MAX_SHARED:
            for raw in self._of_key.pop(key, ()):
                del self._shared[raw]
            self._own_keys.add(key)
            return False
        return bool(values) or len(self._of_key) + len(self._own_keys) < _MAX_KEYS

    def _profile(self, identity: _Identity) -> Profile:
        profile = self._profiles.get(identity)
        if profile is None:
            attributes = map(anyvalue_pb2.KeyValue.FromString, identity.shared)
            common = {attribute.key: value_of(attribute.value) for attribute in attributes}
            own = tuple(key for key, _ in identity.own)
            labels = labels_of(common, identity.region, identity.trusted, identity.proof)
            plain = {key: kind() for key, kind in identity.own if issubclass(kind, Scalar)}
            own_labels = frozenset(labels_of(plain, identity.region, identity.trusted)) - set(labels)
            id_counts = identity.proof.id_counts(identity.trusted)
            profile = Profile(identity.region, labels, common, own, own_labels, id_counts, identity)
            if len(self._profiles) >= _MAX_PROFILES:
                self._profiles.clear()
            self._profiles[identity] = profile
        return profile

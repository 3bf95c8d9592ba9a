"""What agents say of themselves, taken apart: what many say alike is kept once, what each says alone is kept with it.

A fleet of a million agents has some hundreds of descriptions, but for the names in them. What selectors make of a
description is then worked out once for all agents that share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from relay.fleet.facts import REGION, Trusted, labels_of
from relay.opamp.identity import value_of
from relay.pb.opamp.v1 import anyvalue_pb2
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.model import Scalar
from relay.policy.selector import Facts

_MOST_SHARED = 256
"""A key with more values than this names single agents."""
_MOST_KEYS = 1_000
_MOST_BYTES = 256
"""A longer attribute is not worth sharing: who makes up many would fill the memory."""
_MOST_ATTRIBUTES = 20_000
_MOST_PROFILES = 50_000
"""Beyond these, nothing new is shared: agents that make up keys and values gain nothing by it."""
Own = tuple[Any, ...]
"""The values that an agent alone has, in the order of its profile's `own`."""


class _Identity(NamedTuple):
    """Equal for agents of one profile."""

    region: str
    trusted: Trusted
    shared: tuple[bytes, ...]
    """Serialised attributes, one a key."""
    own: tuple[tuple[str, type], ...]
    """Keys of the others, and of what type their values are: only plain ones can be labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What agents of one region have in common."""

    region: str
    labels: Mapping[str, Any]
    attributes: Mapping[str, Any]
    own: tuple[str, ...]
    """Keys of attributes of which each agent has a value of its own."""
    own_labels: frozenset[str]
    """Those of them that are labels too."""
    identity: _Identity

    def facts(self, agent_id: str, own: Own) -> Facts:
        """An agent of this profile as selectors see it."""
        if not self.own:
            return Facts(agent_id, self.labels, self.attributes)
        values = dict(zip(self.own, own, strict=True))
        labels = {key: values[key] for key in self.own_labels}
        return Facts(agent_id, {**labels, **self.labels}, {**self.attributes, **values})

    def shared(self) -> Facts:
        """What selectors see in all agents of this profile: all of it where they ask for none of `own`."""
        return Facts("", self.labels, self.attributes)

    def tells(self, keys: Set[str]) -> bool:
        """Whether `shared` is enough for selectors that mention these keys."""
        return keys.isdisjoint(self.own)

    def value(self, key: str, own: Own) -> Any:
        """One attribute of an agent; None where it has none of that key."""
        return own[self.own.index(key)] if key in self.own else self.attributes.get(key)


class Profiles:
    """Makes them, each once."""

    def __init__(self) -> None:
        self._shared: dict[bytes, str] = {}
        """Serialised attribute → its key, of those that many agents may have."""
        self._of_key: dict[str, set[bytes]] = {}
        """Key → its attributes in `_shared`."""
        self._own: set[str] = set()
        """Keys that name single agents."""
        self._made: dict[_Identity, Profile] = {}

    def split(self, description: bytes, region: str, trusted: Trusted) -> tuple[Profile, Own]:
        """An agent's profile, and the values that are its own.

        Args:
            description: its AgentDescription, serialised.
            region: of its node.
            trusted: attributes that count as labels there.

        Raises:
            DecodeError: it cannot be read.
        """
        message = pb.AgentDescription.FromString(description)
        shared: dict[str, bytes] = {}
        own: dict[str, Any] = {}
        self._part(message.non_identifying_attributes, shared, own)
        self._part(message.identifying_attributes, shared, own)
        # In an order of our own: one agent may say the same in another order each time.
        alone = sorted(own.items(), key=itemgetter(0))
        kinds = tuple([(key, type(value)) for key, value in alone])
        identity = _Identity(region, trusted, tuple(sorted(shared.values())), kinds)
        return self._profile(identity), tuple([value for _, value in alone])

    def trusting(self, profile: Profile, trusted: Trusted) -> Profile:
        """What a profile is where other attributes are trusted."""
        return self._profile(profile.identity._replace(trusted=trusted))

    def _part(self, attributes: Iterable[anyvalue_pb2.KeyValue], shared: dict[str, bytes], own: dict[str, Any]) -> None:
        """Sort attributes by whether they are shared; of two of one key the later one wins."""
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
        if key in self._own or not isinstance(value, Scalar):
            return False
        if size > _MOST_BYTES or len(self._shared) >= _MOST_ATTRIBUTES:
            return False
        values = self._of_key.get(key, ())
        if len(values) >= _MOST_SHARED:
            for raw in self._of_key.pop(key, ()):
                del self._shared[raw]
            self._own.add(key)
            return False
        return bool(values) or len(self._of_key) + len(self._own) < _MOST_KEYS

    def _profile(self, identity: _Identity) -> Profile:
        profile = self._made.get(identity)
        if profile is None:
            attributes = map(anyvalue_pb2.KeyValue.FromString, identity.shared)
            common = {attribute.key: value_of(attribute.value) for attribute in attributes}
            own = tuple(key for key, _ in identity.own)
            labels = labels_of(common, identity.region, identity.trusted)
            plain = {key: kind() for key, kind in identity.own if issubclass(kind, Scalar)}
            own_labels = frozenset(labels_of(plain, identity.region, identity.trusted)) - {REGION}
            profile = Profile(identity.region, labels, common, own, own_labels, identity)
            if len(self._made) >= _MOST_PROFILES:
                self._made.clear()
            self._made[identity] = profile
        return profile

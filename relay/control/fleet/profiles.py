"""What agents say of themselves, taken apart: what many say alike is kept once, what each says alone is kept with it.

A fleet of a million agents has some hundreds of descriptions, but for the names in them. What selectors make of a
description is then worked out once for all agents that share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from relay.control.fleet.nodes import Trusted
from relay.fleet.facts import REGION, labels_of
from relay.policy.selector import Facts

_MOST_SHARED = 256
"""A key with more values than this names single agents."""
_MOST_KEYS = 1_000
_MOST_PROFILES = 50_000
"""Beyond these, nothing new is shared: agents that make up keys and values gain nothing by it."""
Own = tuple[Any, ...]
"""The values that an agent alone has, in the order of its profile's `own`."""


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
        self._values: dict[str, set[Any]] = {}
        """Key → the values of it that were seen, while they are few."""
        self._own: set[str] = set()
        self._made: dict[object, Profile] = {}

    def split(self, attributes: Mapping[str, Any], region: str, trusted: Trusted) -> tuple[Profile, Own]:
        """An agent's profile, and the values that are its own.

        Args:
            attributes: all that it says.
            region: of its node.
            trusted: attributes that count as labels there.
        """
        common: dict[str, Any] = {}
        own: dict[str, Any] = {}
        # In Python 1 == True == 1.0, and JSON knows them apart.
        kinds: list[object] = []
        for key, value in attributes.items():
            seen = self._values.get(key)
            is_text = type(value) is str
            if (is_text and seen is not None and value in seen) or self._is_shared(key, value):
                common[key] = value
            else:
                own[key] = value
            if not is_text:
                kinds.append(type(value))
        identity = region, trusted, tuple(common.items()), tuple(own), tuple(kinds)
        profile = self._made.get(identity)
        if profile is None:
            labels = labels_of(common, region, trusted)
            own_labels = frozenset(labels_of(own, region, trusted)) - {REGION}
            profile = Profile(region, labels, common, tuple(own), own_labels)
            if len(self._made) >= _MOST_PROFILES:
                self._made.clear()
            self._made[identity] = profile
        return profile, tuple(own.values())

    def _is_shared(self, key: str, value: Any) -> bool:
        if key in self._own or not isinstance(value, str | int | float | bool):
            return False
        values = self._values.get(key)
        if values is None:
            if len(self._values) + len(self._own) >= _MOST_KEYS:
                return False
            values = self._values[key] = set()
        if value not in values:
            values.add(value)
            if len(values) > _MOST_SHARED:
                self._own.add(key)
                del self._values[key]
                return False
        return True

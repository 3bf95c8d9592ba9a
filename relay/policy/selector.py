"""Match agents against selectors.

The terms of all selectors are numbered once. An agent is reduced to the bit vector of the terms that it satisfies; agents
with equal vectors get equal answers (a cohort).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.policy.model import Selector, Term, canonical


@dataclass(frozen=True, slots=True)
class Facts:
    """What selectors see of one agent."""

    agent_id: str
    labels: Mapping[str, Any]
    attributes: Mapping[str, Any]
    id_counts: bool = True
    """Whether selectors may go by the agent id: it is proved, or the agent's word is trusted."""


class Matcher:
    """Numbers the terms of selectors, reduces agents to bit vectors, and matches them.

    Bit i is term i. Above the terms, bit (terms + j) is set if selector j lists this agent id, or lists none.
    """

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self._index: dict[Term, int] = {}
        required: list[int] = []
        ids_of: list[list[str]] = []
        for selector in selectors:
            bits = 0
            for term in selector.terms:
                bits |= 1 << self._index.setdefault(term, len(self._index))
            required.append(bits)
            ids_of.append(selector.agent_ids)
        self._terms = sorted(self._index, key=self._index.__getitem__)
        self.keys = frozenset(key for _, key, _ in self._terms)
        """Keys of labels and attributes that any selector mentions."""
        by_key: dict[tuple[str, str], dict[bytes | str, int]] = {}
        for i, (source, key, value) in enumerate(self._terms):
            # Nearly all values are text and most do not match, so text is compared without making it canonical.
            by_key.setdefault((source, key), {})[json.loads(value) if value[:1] == b'"' else value] = 1 << i
        self._by_key = [(*source_and_key, values) for source_and_key, values in by_key.items()]
        self._by_id: dict[str, int] = {}
        self._any_id = 0
        for j, ids in enumerate(ids_of):
            bit = 1 << (len(self._terms) + j)
            required[j] |= bit
            if not ids:
                self._any_id |= bit
            for agent_id in ids:
                self._by_id[agent_id] = self._by_id.get(agent_id, 0) | bit
        self._required = required

    @property
    def agent_ids(self) -> Collection[str]:
        """The agent ids that any selector lists."""
        return self._by_id.keys()

    @property
    def mentions(self) -> tuple[object, ...]:
        """Equal for two matchers that give every agent the same vector."""
        return (tuple(self._terms), tuple(sorted(self._by_id.items())), self._any_id)

    def vector(self, facts: Facts) -> int:
        """The outcomes of all terms for one agent."""
        bits = self._any_id | (self._by_id.get(facts.agent_id, 0) if facts.id_counts else 0)
        for source, key, values in self._by_key:
            actual = (facts.labels if source == "label" else facts.attributes).get(key)
            if actual is not None:
                bits |= values.get(actual if isinstance(actual, str) else canonical(actual), 0)
        return bits

    def matches(self, selector: int, vector: int) -> bool:
        """Whether selector number `selector` matches an agent of this vector."""
        required = self._required[selector]
        return vector & required == required


def matches(selector: Selector, facts: Facts) -> bool:
    """Whether one selector matches one agent."""
    matcher = Matcher([selector])
    return matcher.matches(0, matcher.vector(facts))


def implies(one: Selector, other: Selector) -> bool:
    """Whether `other` matches every agent that `one` matches, as far as the selectors alone can tell."""
    if not set(other.terms) <= set(one.terms):
        return False
    return not other.agent_ids or (bool(one.agent_ids) and set(one.agent_ids) <= set(other.agent_ids))

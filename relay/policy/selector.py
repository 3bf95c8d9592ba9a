"""Matching selectors.

All the terms of all selectors are numbered once, and an agent is reduced to the vector of their outcomes: agents with equal
vectors get equal answers (a cohort).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.policy.model import Selector, Term, canonical


@dataclass(frozen=True, slots=True)
class Facts:
    """What selectors look at in one agent."""

    agent_id: str
    labels: Mapping[str, Any]
    attributes: Mapping[str, Any]


class Matcher:
    """Numbers the terms of some selectors; reduces agents to bit vectors and matches them.

    Bit i is term i; above the terms, bit (terms + j) says that selector j names this agent id (or names none).
    """

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self._index: dict[Term, int] = {}
        wanted: list[int] = []
        named: list[list[str]] = []
        for selector in selectors:
            bits = 0
            for term in selector.terms:
                bits |= 1 << self._index.setdefault(term, len(self._index))
            wanted.append(bits)
            named.append(selector.agent_ids)
        self._terms = sorted(self._index, key=self._index.__getitem__)
        self.keys = frozenset(key for _, key, _ in self._terms)
        """Keys of labels and attributes that any selector mentions."""
        by_key: dict[tuple[str, str], dict[bytes | str, int]] = {}
        for i, (source, key, value) in enumerate(self._terms):
            # Nearly all values are text, and most agents have others than are asked for: it is compared as it is.
            by_key.setdefault((source, key), {})[json.loads(value) if value[:1] == b'"' else value] = 1 << i
        self._by_key = [(*where, values) for where, values in by_key.items()]
        self._by_id: dict[str, int] = {}
        self._any_id = 0
        for j, ids in enumerate(named):
            bit = 1 << (len(self._terms) + j)
            wanted[j] |= bit
            if not ids:
                self._any_id |= bit
            for agent_id in ids:
                self._by_id[agent_id] = self._by_id.get(agent_id, 0) | bit
        self._wanted = wanted

    @property
    def agent_ids(self) -> Collection[str]:
        """The agent ids that any selector names."""
        return self._by_id.keys()

    @property
    def mentions(self) -> tuple[object, ...]:
        """Equal for two matchers that give every agent the same vector."""
        return (tuple(self._terms), tuple(sorted(self._by_id.items())), self._any_id)

    def vector(self, facts: Facts) -> int:
        """The outcomes of all terms for one agent."""
        bits = self._any_id | self._by_id.get(facts.agent_id, 0)
        for source, key, values in self._by_key:
            held = (facts.labels if source == "label" else facts.attributes).get(key)
            if held is not None:
                bits |= values.get(held if isinstance(held, str) else canonical(held), 0)
        return bits

    def matches(self, selector: int, vector: int) -> bool:
        """Whether selector number `selector` matches an agent of this vector."""
        wanted = self._wanted[selector]
        return vector & wanted == wanted


def matches(selector: Selector, facts: Facts) -> bool:
    """Whether one selector matches one agent."""
    matcher = Matcher([selector])
    return matcher.matches(0, matcher.vector(facts))


def implies(one: Selector, other: Selector) -> bool:
    """Whether every agent that `one` matches is matched by `other` too, as far as the selectors alone can tell."""
    if not set(other.terms) <= set(one.terms):
        return False
    return not other.agent_ids or (bool(one.agent_ids) and set(one.agent_ids) <= set(other.agent_ids))

"""Agents of one answer: evaluated once, rendered once, encoded once.

`Cohorts` alone sets `Record.cohort`. A policy change that leaves the keying alone touches cohorts, not agents; one that
changes it makes every cohort stale, and agents are placed anew when they are next looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from relay.fleet.facts import facts_of
from relay.opamp import capabilities
from relay.opamp.offer import Offer, encode
from relay.opamp.record import Record
from relay.policy.evaluate import CohortKey, Decision, Evaluator
from relay.policy.snapshot import Snapshot


class Cohort:
    """Agents that get one answer."""

    __slots__ = ("decision", "generation", "key", "offer")

    def __init__(self, key: CohortKey, generation: int) -> None:
        self.key = key
        self.generation = generation
        self.decision: Decision | None = None
        self.offer: Offer | None = None


class Cohorts:
    """All cohorts of a node.

    Args:
        region: the node's own, the label `region` of every agent.
        trusted: attributes that count as labels.
    """

    def __init__(self, region: str, trusted: Literal["all"] | tuple[str, ...]) -> None:
        self._region = region
        self._trusted = trusted
        self._evaluator = Evaluator(Snapshot())
        self._generation = 0
        self._cohorts: dict[CohortKey, Cohort] = {}
        self._offers: dict[bytes, Offer] = {}
        self._rendered: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._cohorts)

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force."""
        return self._evaluator.snapshot

    def change(self, snapshot: Snapshot) -> bool:
        """Put a new policy in force. Offers are made when first asked for.

        Returns:
            Whether any agent's answer may have changed.
        """
        evaluator = Evaluator(snapshot)
        keying_changed = evaluator.keying != self._evaluator.keying
        self._evaluator = evaluator
        before = self._offers
        self._offers, self._rendered = {}, dict(self._rendered)
        if keying_changed:
            self._generation += 1
            self._cohorts = {}
            self._offers = before
            return True
        changed = False
        for cohort in self._cohorts.values():
            decision = evaluator.decide(cohort.key)
            if _hash(decision) != _hash(cohort.decision):
                changed = True
            cohort.decision = decision
            cohort.offer = self._offer(decision, before)
        used = {c.content.content_hash for co in self._cohorts.values() if co.decision for c in co.decision.choices}
        self._rendered = {key: data for key, data in self._rendered.items() if key in used}
        return changed

    def place(self, record: Record) -> Cohort:
        """Find the cohort of an agent whose description or capabilities changed."""
        wanted = self._evaluator.keys
        facts = facts_of(record.agent_description, record.agent_id, self._region, self._trusted, wanted)
        key = self._evaluator.key(facts, record.capabilities & capabilities.DECIDING)
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = Cohort(key, self._generation)
            cohort.decision = self._evaluator.decide(key)
            cohort.offer = self._offer(cohort.decision, self._offers)
        record.cohort = cohort
        return cohort

    def of(self, record: Record) -> Cohort:
        """The current cohort of an agent."""
        cohort = record.cohort
        if isinstance(cohort, Cohort) and cohort.generation == self._generation:
            return cohort
        return self.place(record)

    def offer(self, record: Record) -> Offer | None:
        """What policy selects for an agent; None for nothing. The `decide` of every session."""
        return self.of(record).offer

    def _offer(self, decision: Decision | None, known: Mapping[bytes, Offer]) -> Offer | None:
        if decision is None:
            return None
        offer = known.get(decision.config_hash)
        if offer is None or offer.assignments != decision.assignments:
            slots = {}
            for choice in decision.choices:
                content = choice.content
                rendered = self._rendered.get(content.content_hash)
                if rendered is None:
                    rendered = self._rendered[content.content_hash] = content.render()
                slots[choice.slot] = (rendered, content.template.spec.content_type)
            offer = encode(decision.config_hash, slots, decision.assignments)
        self._offers[decision.config_hash] = offer
        return offer


def _hash(decision: Decision | None) -> bytes | None:
    return decision.config_hash if decision else None

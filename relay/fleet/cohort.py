"""Agents of one answer: evaluated once, rendered once, encoded once.

`Cohorts` alone sets `Record.cohort`. A policy change that leaves the keying alone touches cohorts, not agents; one that
changes it makes every cohort stale, and agents are placed anew when they are next looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from relay.fleet.facts import Trusted, facts_of
from relay.opamp import capabilities
from relay.opamp.offer import Offer, OfferedSlot, WithheldSlot, encode
from relay.opamp.offering import Offering
from relay.opamp.packages import OfferedPackage, PackagesOffer
from relay.opamp.record import Record
from relay.policy.evaluate import NOTHING, Choice, CohortKey, Decision, Evaluator, applied_of
from relay.policy.packages import package_hash
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.snapshot import ConfigContent, Content, Snapshot


class Cohort:
    """Agents that get one answer."""

    __slots__ = ("decision", "generation", "key", "offer", "packages", "withheld")

    def __init__(self, key: CohortKey, generation: int) -> None:
        self.key = key
        self.generation = generation
        self.decision = NOTHING
        self.offer: Offer | None = None
        self.packages: PackagesOffer | None = None
        self.withheld: tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]] = ((), ())
        """What its agents should have and are not offered: of configs, of packages."""


class Cohorts:
    """All cohorts of a node.

    Args:
        region: the node's own, the label `region` of every agent.
        trusted: attributes that count as labels.
    """

    def __init__(self, region: str, trusted: Trusted) -> None:
        self._region = region
        self._trusted = trusted
        self._evaluator = Evaluator(Snapshot())
        self._halted: frozenset[str] = frozenset()
        self._frozen: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._in_doubt = False
        self._generation = 0
        self._cohorts: dict[CohortKey, Cohort] = {}
        # Of the policy in force and of the one before: what did not change is not made again, what is gone is dropped.
        self._offers: dict[bytes, Offer] = {}
        self._offers_before: dict[bytes, Offer] = {}
        self._rendered: dict[bytes, bytes] = {}
        self._rendered_before: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._cohorts)

    @property
    def evaluator(self) -> Evaluator:
        """What decides now."""
        return self._evaluator

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force."""
        return self._evaluator.snapshot

    def restrict(self, halted: frozenset[str], frozen: frozenset[str]) -> bool:
        """Hold back candidates: see `Evaluator`. Returns whether any agent's answer may have changed."""
        if (halted, frozen) == (self._halted, self._frozen):
            return False
        self._halted, self._frozen = halted, frozen
        return self.change(self.snapshot, missing=self._missing, in_doubt=self._in_doubt)

    def prepare(self, snapshot: Snapshot) -> dict[bytes, bytes]:
        """Render what the cohorts there are would get by a policy. Slow, and changes nothing: to be called in a thread.

        Returns:
            Content hash → bytes, for `change`.
        """
        evaluator = Evaluator(snapshot, halted=self._halted, frozen=self._frozen)
        if evaluator.keying != self._evaluator.keying:
            return {}
        rendered: dict[bytes, bytes] = {}
        for decision in map(evaluator.decide, list(self._cohorts)):
            for choice in decision.choices:
                key = choice.content_hash
                if key not in rendered and key not in self._rendered:
                    rendered[key] = choice.config.render()
        return rendered

    def change(
        self,
        snapshot: Snapshot,
        rendered: Mapping[bytes, bytes] | None = None,
        *,
        missing: frozenset[str] = frozenset(),
        in_doubt: bool = False,
    ) -> bool:
        """Put a new policy in force. Offers are made when first asked for.

        Args:
            rendered: what `prepare` gave.
            missing: assignments of it that are not here: agents that belong to them keep what they have.
            in_doubt: others may be missing: so do agents that belong to none that is here.

        Returns:
            Whether any agent's answer may have changed.
        """
        self._missing, self._in_doubt = missing, in_doubt
        evaluator = Evaluator(snapshot, halted=self._halted, frozen=self._frozen)
        keying_changed = evaluator.keying != self._evaluator.keying
        self._evaluator = evaluator
        self._offers_before, self._offers = self._offers, {}
        self._rendered_before, self._rendered = self._rendered, dict(rendered or {})
        if keying_changed:
            self._generation += 1
            self._cohorts = {}
            return True
        changed = False
        for cohort in self._cohorts.values():
            decision = evaluator.decide(cohort.key)
            if (decision.hashes, decision.withheld) != (cohort.decision.hashes, cohort.decision.withheld):
                changed = True
            self._decided(cohort, decision)
        return changed

    def _decided(self, cohort: Cohort, decision: Decision) -> None:
        cohort.decision = decision
        cohort.offer = self._offer(decision)
        cohort.packages = _packages(decision)
        cohort.withheld = _withheld(decision, CONFIG), _withheld(decision, PACKAGES)

    def place(self, record: Record) -> Cohort:
        """Find the cohort of an agent whose description or capabilities changed."""
        wanted = self._evaluator.keys
        facts = facts_of(record.agent_description, record.agent_id, self._region, self._trusted, wanted)
        key = self._evaluator.key(
            facts,
            record.capabilities & capabilities.DECIDING,
            failed=tuple(f.attempt for f in record.failures),
            held=[slot.content_hash for slot in record.held],
            applied=applied_of(record.config.applied, record.installed),
        )
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = Cohort(key, self._generation)
            self._decided(cohort, self._evaluator.decide(key))
        record.cohort = cohort
        return cohort

    def drop_unused(self, records: Iterable[Record]) -> None:
        """Now and then: cohorts go that no agent is in any more."""
        used = {record.cohort for record in records}
        self._cohorts = {key: cohort for key, cohort in self._cohorts.items() if cohort in used}

    def of(self, record: Record) -> Cohort:
        """The current cohort of an agent."""
        cohort = record.cohort
        if (
            not isinstance(cohort, Cohort)
            or cohort.generation != self._generation
            or self._evaluator.looks_back(cohort.key.failed)
        ):
            return self.place(record)
        return cohort

    def offer(self, record: Record) -> Offer | None:
        """What policy selects for an agent; None for nothing. The `decide` of every session."""
        return None if self._may_miss(record.config) else self.of(record).offer

    def packages(self, record: Record) -> PackagesOffer | None:
        """Which packages policy selects for an agent; None for none."""
        return None if self._may_miss(record.packages) else self.of(record).packages

    def _may_miss(self, offering: Offering | None) -> bool:
        """Whether an agent belongs to an assignment that is not here, as far as is known."""
        if not self._missing and not self._in_doubt:
            return False
        known = {slot.assignment for slot in offering.slots} if offering is not None else set()
        lost = not known or not known <= {a.published.name for a in self.snapshot.assignments}
        return bool(known & self._missing) or (self._in_doubt and lost)

    def withheld(self, record: Record) -> tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]]:
        """What an agent should have and is not offered: of configs, of packages."""
        return self.of(record).withheld

    def hash_of(self, content: Content, record: Record) -> bytes | None:
        """The content hash of something for an agent; None where it has none for it."""
        if isinstance(content, ConfigContent):
            return content.content_hash
        return self._evaluator.hash_of(content, self.of(record).key.vector)

    def contents_with(self, sha256: str) -> frozenset[bytes]:
        """Content hashes of all sets of packages that hold a file."""
        return frozenset(
            choice.content_hash
            for cohort in self._cohorts.values()
            for assignment in self.snapshot.assignments
            if assignment.kind == PACKAGES
            for choice in self._evaluator.options(assignment, cohort.key)
            if choice.files is not None and any(file.sha256 == sha256 for _, file in choice.files.files)
        )

    def wanted(self) -> Iterator[PackagesOffer]:
        """What is offered to some agent, or would be if its files were here."""
        return (cohort.packages for cohort in self._cohorts.values() if cohort.packages is not None)

    def _offer(self, decision: Decision) -> Offer | None:
        if not decision.choices:
            return None
        wanted = decision.config_hash
        offer = self._offers.get(wanted) or self._offers_before.get(wanted)
        made_of = tuple(_slot(choice) for choice in decision.choices)
        if offer is None or offer.slots != made_of:
            slots = {
                choice.slot: (self._render(choice.config), choice.config.template.spec.content_type)
                for choice in decision.choices
            }
            offer = encode(wanted, slots, made_of)
        self._offers[wanted] = offer
        return offer

    def _render(self, content: ConfigContent) -> bytes:
        key = content.content_hash
        rendered = self._rendered.get(key) or self._rendered_before.get(key) or content.render()
        self._rendered[key] = rendered
        return rendered


def _slot(choice: Choice) -> OfferedSlot:
    published = choice.assignment.published
    return OfferedSlot(choice.slot, published.name, choice.content_hash, published.retry)


def _withheld(decision: Decision, kind: str) -> tuple[WithheldSlot, ...]:
    return tuple(
        WithheldSlot(w.slot, w.assignment, w.content_hash, w.reason) for w in decision.withheld if w.kind == kind
    )


def _packages(decision: Decision) -> PackagesOffer | None:
    choice = decision.packages
    if choice is None or choice.files is None:
        return None
    offered = tuple(
        OfferedPackage(
            package.name,
            package.version,
            package.type,
            package_hash(package, file),
            bytes.fromhex(file.sha256),
            bytes.fromhex(file.signature),
        )
        for package, file in choice.files.files
    )
    hashes = tuple((package.name, package.hash) for package in offered)
    return PackagesOffer(decision.packages_hash, offered, (_slot(choice),), hashes)

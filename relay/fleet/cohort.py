"""Cohorts: agents that get the same answer, which is evaluated, rendered and encoded once.

Only `Cohorts` sets `Record.cohort`. A policy change that keeps the keying updates cohorts, not agents. A change of the
keying makes every cohort stale; agents are placed again when they are next looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from relay.fleet.facts import Proof, Trusted, facts_of
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
    """Agents that get the same answer."""

    __slots__ = ("decision", "generation", "key", "offer", "packages", "withheld")

    def __init__(self, key: CohortKey, generation: int) -> None:
        self.key = key
        self.generation = generation
        self.decision = NOTHING
        self.offer: Offer | None = None
        self.packages: PackagesOffer | None = None
        self.withheld: tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]] = ((), ())
        """(configs, packages) that its agents should have but are not offered."""


class Cohorts:
    """All cohorts of a node.

    Args:
        region: the node's region, which every agent gets as its label `region`.
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
        # Caches of the current and the previous policy: unchanged entries are reused, the others are dropped.
        self._offers: dict[bytes, Offer] = {}
        self._offers_before: dict[bytes, Offer] = {}
        self._rendered: dict[bytes, bytes] = {}
        self._rendered_before: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._cohorts)

    @property
    def evaluator(self) -> Evaluator:
        """The evaluator of the policy in force."""
        return self._evaluator

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force."""
        return self._evaluator.snapshot

    def restrict(self, halted: frozenset[str], frozen: frozenset[str]) -> bool:
        """Withhold candidates; see `Evaluator`. Returns whether any agent's answer may have changed."""
        if (halted, frozen) == (self._halted, self._frozen):
            return False
        self._halted, self._frozen = halted, frozen
        return self.change(self.snapshot, missing=self._missing, in_doubt=self._in_doubt)

    def prepare(self, snapshot: Snapshot) -> dict[bytes, bytes]:
        """Render what the existing cohorts would get from a policy. Slow but free of side effects: call it in a thread.

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
        """Put a new policy in force.

        Args:
            rendered: the result of `prepare`.
            missing: assignments of the policy that are not here; their agents keep what they have.
            in_doubt: other assignments may be missing too; agents of no assignment here also keep what they have.

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
            self._set_decision(cohort, decision)
        return changed

    def _set_decision(self, cohort: Cohort, decision: Decision) -> None:
        cohort.decision = decision
        cohort.offer = self._config_offer(decision)
        cohort.packages = _packages_offer(decision)
        cohort.withheld = _withheld(decision, CONFIG), _withheld(decision, PACKAGES)

    def place(self, record: Record) -> Cohort:
        """Find the cohort of an agent whose description or capabilities changed."""
        keys = self._evaluator.keys
        facts = facts_of(
            record.agent_description, record.agent_id, self._region, self._trusted, keys, Proof.of_record(record)
        )
        key = self._evaluator.key(
            facts,
            record.capabilities & capabilities.DECIDING,
            failed=tuple(f.attempt for f in record.failures),
            held=[slot.content_hash for slot in record.offered_slots],
            applied=applied_of(record.config.applied, record.installed),
        )
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = Cohort(key, self._generation)
            self._set_decision(cohort, self._evaluator.decide(key))
        record.cohort = cohort
        return cohort

    def drop_unused(self, records: Iterable[Record]) -> None:
        """Drop cohorts without agents. To be called now and then."""
        used = {record.cohort for record in records}
        self._cohorts = {key: cohort for key, cohort in self._cohorts.items() if cohort in used}

    def cohort_of(self, record: Record) -> Cohort:
        """The current cohort of an agent."""
        cohort = record.cohort
        if (
            not isinstance(cohort, Cohort)
            or cohort.generation != self._generation
            or self._evaluator.uses_history(cohort.key.failed)
        ):
            return self.place(record)
        return cohort

    def offer(self, record: Record) -> Offer | None:
        """The config that policy selects for an agent; None for none."""
        return None if self._may_lack_assignment(record.config) else self.cohort_of(record).offer

    def packages(self, record: Record) -> PackagesOffer | None:
        """The packages that policy selects for an agent; None for none."""
        return None if self._may_lack_assignment(record.packages) else self.cohort_of(record).packages

    def _may_lack_assignment(self, offering: Offering | None) -> bool:
        """Whether the agent may belong to an assignment that is missing here, judging by its last offer."""
        if not self._missing and not self._in_doubt:
            return False
        current = {slot.assignment for slot in offering.slots} if offering is not None else set()
        unaccounted = not current or not current <= {a.published.name for a in self.snapshot.assignments}
        return bool(current & self._missing) or (self._in_doubt and unaccounted)

    def withheld(self, record: Record) -> tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]]:
        """(configs, packages) that an agent should have but is not offered."""
        return self.cohort_of(record).withheld

    def hash_of(self, content: Content, record: Record) -> bytes | None:
        """The hash of a content for an agent; None if the content has no files for it."""
        if isinstance(content, ConfigContent):
            return content.content_hash
        return self._evaluator.hash_of(content, self.cohort_of(record).key.vector)

    def contents_with(self, sha256: str) -> frozenset[bytes]:
        """Content hashes of all package sets that contain a file."""
        return frozenset(
            choice.content_hash
            for cohort in self._cohorts.values()
            for assignment in self.snapshot.assignments
            if assignment.kind == PACKAGES
            for choice in self._evaluator.options(assignment, cohort.key)
            if choice.files is not None and any(file.sha256 == sha256 for _, file in choice.files.files)
        )

    def package_offers(self) -> Iterator[PackagesOffer]:
        """The package offers of all cohorts, including those whose files are not here yet."""
        return (cohort.packages for cohort in self._cohorts.values() if cohort.packages is not None)

    def _config_offer(self, decision: Decision) -> Offer | None:
        if not decision.choices:
            return None
        key = decision.config_hash
        offer = self._offers.get(key) or self._offers_before.get(key)
        slots = tuple(_slot(choice) for choice in decision.choices)
        if offer is None or offer.slots != slots:
            bodies = {
                choice.slot: (self._render(choice.config), choice.config.template.spec.content_type)
                for choice in decision.choices
            }
            offer = encode(key, bodies, slots)
        self._offers[key] = offer
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


def _packages_offer(decision: Decision) -> PackagesOffer | None:
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

"""Decide from a snapshot what an agent should run.

For each slot an agent belongs to one assignment: of those that match it, the one with the highest priority, then the
smallest name. Packages are decided in the same way, as one more slot. From its assignment the agent gets the candidate if
its bucket is below the rollout's threshold, else the stable revision. If the agent failed to apply that revision before, or
its region rejected it, the agent gets what it last applied of the same assignment, else the next best revision of it, else
it keeps what it has. A failure never changes which assignment an agent belongs to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.ids import ConfigHash, sha256
from relay.policy import packages, rollout
from relay.policy.model import Selector
from relay.policy.packages import PackageFile, PackageSet
from relay.policy.published import CONFIG, PACKAGES, PublishedRollout, Revision
from relay.policy.selector import Facts, Matcher
from relay.policy.snapshot import Assignment, ConfigContent, Content, PackageContent, Snapshot

EVERYBODY = Selector()
Failed = tuple[tuple[str, bytes, int], ...]
"""(slot, content hash, retry generation) of each content that an agent could not apply."""
Applied = tuple[tuple[str, str, bytes], ...]
"""(kind of the assignment, slot, content hash) of each content that an agent last applied."""


class CohortKey(NamedTuple):
    """Everything that a decision depends on: agents with equal keys run the same."""

    vector: int
    """The selector terms that match, as bits."""
    capabilities: int
    """The capabilities that matter, as bits."""
    sides: int
    """The rollouts whose candidate the agent is on, as bits."""
    failed: Failed
    applied: Applied
    """Empty unless the agent may need a fallback."""


class Slot(Protocol):
    """A slot that an agent has applied."""

    @property
    def slot(self) -> str:
        """Name of the slot; empty for packages."""

    @property
    def content_hash(self) -> bytes:
        """Hash of the content in the slot."""


def applied_of(configs: Iterable[Slot], package_slots: Iterable[Slot]) -> Applied:
    """Combine the applied configs and packages. The kind keeps them apart: both may have a slot with an empty name."""
    return (
        *((CONFIG, slot.slot, slot.content_hash) for slot in configs),
        *((PACKAGES, slot.slot, slot.content_hash) for slot in package_slots),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What an assignment gives a cohort."""

    assignment: Assignment
    content: Content
    content_hash: bytes
    rollout: str
    """The rollout whose candidate this is; empty for the stable revision."""
    files: PackageSet | None = None
    """For packages: the files for this cohort."""

    @property
    def slot(self) -> str:
        """Key in the config map; empty for packages."""
        return self.content.revision.slot

    @property
    def priority(self) -> int:
        """Priority of the revision."""
        return self.content.revision.priority

    @property
    def config(self) -> ConfigContent:
        """The content, which must be a config."""
        assert isinstance(self.content, ConfigContent)
        return self.content


@dataclass(frozen=True, slots=True)
class Withheld:
    """What a cohort should have from its assignment but is not given."""

    kind: str
    """CONFIG or PACKAGES."""
    slot: str
    assignment: str
    content_hash: bytes
    """The content that its agents failed to apply; empty if their region rejected the revision."""
    reason: str
    """Why the region rejected the revision; empty if the agents failed: each reports its own error."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What an assignment gives a cohort, unless another assignment takes precedence."""

    assignment: Assignment
    slot: str
    priority: int
    """Priority of the revision that the cohort should have, whichever it is given."""
    given: Choice | None
    """None: the cohort keeps what it has."""
    withheld: Withheld | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a cohort runs."""

    choices: tuple[Choice, ...]
    """Ordered by slot; empty if no config is offered."""
    config_hash: ConfigHash
    packages: Choice | None = None
    packages_hash: bytes = b""
    withheld: tuple[Withheld, ...] = ()

    @property
    def assignments(self) -> tuple[str, ...]:
        """Names of the assignments, ordered by slot, the package assignment last."""
        choices = [*self.choices, *([self.packages] if self.packages is not None else [])]
        return tuple(c.assignment.published.name for c in choices)

    @property
    def hashes(self) -> tuple[bytes, bytes]:
        """Equal for decisions that look the same to agents."""
        return self.config_hash, self.packages_hash


NOTHING = Decision((), ConfigHash(b""))


class Evaluator:
    """A snapshot, indexed for fast decisions.

    Args:
        halted: rollouts whose candidate no agent gets.
        frozen: rollouts whose candidate only agents that already have it keep.
    """

    def __init__(
        self, snapshot: Snapshot, *, halted: Collection[str] = frozenset(), frozen: Collection[str] = frozenset()
    ) -> None:
        self.snapshot = snapshot
        self.halted = halted
        self.frozen = frozen
        self._decided: dict[CohortKey, Decision] = {}
        branches = [branch for a in snapshot.assignments for branch in a.branches]
        contents = [c for a in snapshot.assignments for c in a.contents]
        revisions = [r for a in snapshot.assignments for r in a.revisions]
        selectors = [*(r.selector for r in revisions), *(change.selector for change, _ in branches)]
        selectors += [
            f.selector for c in contents if isinstance(c, PackageContent) for p in c.packages for f in p.files
        ]
        distinct = {s.identity: s for s in selectors}
        distinct.pop(EVERYBODY.identity, None)  # a selector that matches everybody needs no bit
        self._matcher = Matcher(distinct.values())
        self._number_of: dict[bytes, int | None] = {identity: i for i, identity in enumerate(distinct)}
        self._number_of[EVERYBODY.identity] = None
        # A rollout that nobody or everybody is on does not split cohorts.
        self._splitting = [
            (change.id, change.threshold, content if change.id in frozen else None)
            for change, content in branches
            if change.id not in halted
            and (rollout.NOBODY < change.threshold < rollout.EVERYONE or (change.threshold and change.id in frozen))
        ]
        self._side_of = {change_id: i for i, (change_id, _, _) in enumerate(self._splitting)}
        self._needs_fallback = any(
            a.refused is not None or (a.published.stable is None and a.earlier) for a in snapshot.assignments
        )

    @property
    def keying(self) -> tuple[object, ...]:
        """Equal for evaluators that give every agent the same cohort key: then the keys can be kept."""
        splitting = [(name, threshold, content.revision if content else None)
                     for name, threshold, content in self._splitting]  # fmt: skip
        return (self._matcher.mentions, splitting, self._needs_fallback)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of labels and attributes that a cohort depends on."""
        return self._matcher.keys

    @property
    def agent_ids(self) -> Collection[str]:
        """The agent ids that selectors list."""
        return self._matcher.agent_ids

    @property
    def is_partial(self) -> bool:
        """Whether any rollout includes only some of its agents: then decisions also depend on agent ids."""
        return bool(self._splitting)

    def key(
        self,
        facts: Facts,
        deciding_capabilities: int,
        *,
        failed: Failed = (),
        held: Collection[bytes] = (),
        applied: Applied = (),
    ) -> CohortKey:
        """The cohort of an agent.

        Args:
            failed: what the agent could not apply.
            held: content hashes that it was last offered, or has.
            applied: what it last applied.
        """
        vector = self._matcher.vector(facts)
        sides = 0
        for i, (change_id, threshold, content) in enumerate(self._splitting):
            if rollout.bucket(change_id, facts.agent_id) < threshold and (
                content is None or self.hash_of(content, vector) in held
            ):
                sides |= 1 << i
        return CohortKey(
            vector, deciding_capabilities, sides, failed, applied if failed or self._needs_fallback else ()
        )

    def uses_history(self, failed: Failed) -> bool:
        """Whether the key also depends on what the agent has or last applied."""
        return bool(failed) or self._needs_fallback or bool(self.frozen)

    def matches(self, selector: Selector, vector: int) -> bool:
        """Whether a selector of the snapshot matches a cohort."""
        number = self._number_of[selector.identity]
        return number is None or self._matcher.matches(number, vector)

    def decide_once(self, key: CohortKey) -> Decision:
        """Like `decide`, but cached, for callers that evaluate many agents."""
        if key not in self._decided:
            self._decided[key] = self.decide(key)
        return self._decided[key]

    def decide(self, key: CohortKey) -> Decision:
        """What agents of this cohort run."""
        claims: dict[tuple[bool, str], Claim] = {}
        for assignment in self.snapshot.assignments:  # by name
            claim = self.claim(assignment, key)
            if claim is None:
                continue
            lane = (assignment.kind == PACKAGES, claim.slot)
            if lane not in claims or claim.priority > claims[lane].priority:
                claims[lane] = claim
        if not claims:
            return NOTHING
        withheld = tuple(claims[lane].withheld for lane in sorted(claims))
        package_claim = claims.pop((True, ""), None)
        choices = self._choices([claims[lane] for lane in sorted(claims)], key)
        hash_ = ConfigHash(b"")
        if choices:
            hash_ = config_hash([(c.slot, c.content_hash) for c in choices], _retry(choices, key.failed))
        decision = Decision(choices, hash_, withheld=tuple(w for w in withheld if w is not None))
        if package_claim is None or package_claim.given is None or package_claim.given.files is None:
            return decision
        choice = package_claim.given
        options = list(self.options(package_claim.assignment, key))
        # After a failure, or once it is forgiven, the hash must differ: else the agent takes itself to be up to date.
        given = (choice.slot, choice.content_hash)
        failed = sum(is_blocked(option, key.failed) for option in options)
        failed += sum((slot, content) == given and generation < 0 for slot, content, generation in key.failed)
        hash_of_all = packages.all_packages_hash(package_claim.given.files, _retry([choice], key.failed), failed)
        return dataclasses.replace(decision, packages=choice, packages_hash=hash_of_all)

    def _choices(self, claims: Sequence[Claim], key: CohortKey) -> tuple[Choice, ...]:
        """The complete config of a cohort; empty if nothing can be offered."""
        choices = [claim.given for claim in claims if claim.given is not None]
        kept_slots = [claim.slot for claim in claims if claim.given is None]
        for slot in kept_slots if choices else []:
            # A config is always offered as a whole: it must include what the agent keeps, or nothing can be offered.
            applied = next((content for kind, name, content in key.applied if (kind, name) == (CONFIG, slot)), None)
            if applied is not None:
                kept = self._find(slot, applied)
                if kept is None:
                    return ()
                choices.append(kept)
        return tuple(sorted(choices, key=lambda choice: choice.slot))

    def _find(self, slot: str, content_hash: bytes) -> Choice | None:
        """Find a config in any assignment of the snapshot."""
        for assignment in self.snapshot.assignments:
            for content in assignment.contents:
                if not isinstance(content, ConfigContent) or content.revision.slot != slot:
                    continue
                if content.content_hash == content_hash:
                    return Choice(assignment, content, content_hash, "")
        return None

    def claim(self, assignment: Assignment, key: CohortKey) -> Claim | None:
        """What an assignment would give a cohort by itself; None if it does not match the cohort."""
        options = list(self.options(assignment, key))
        refused = assignment.refused
        if refused is not None and not self.matches(refused.revision.selector, key.vector):
            refused = None
        if refused is None and not options:
            return None
        if refused is not None and refused.revision is assignment.published.stable and options and options[0].rollout:
            refused = None  # the stable revision was refused, but this cohort is on a candidate
        allowed = [option for option in options if not is_blocked(option, key.failed)]
        given = allowed[0] if allowed else None
        name = assignment.published.name
        if refused is not None:
            target: Revision = refused.revision
            withheld = Withheld(assignment.kind, target.slot, name, b"", refused.reason)
        elif given is options[0]:
            return Claim(assignment, given.slot, given.priority, given, None)
        else:
            target = options[0].content.revision
            withheld = Withheld(assignment.kind, target.slot, name, options[0].content_hash, "")
        # Prefer what the agents last applied: it is known to work.
        applied = {(slot, content) for kind, slot, content in key.applied if kind == assignment.kind}
        given = next((option for option in allowed if (option.slot, option.content_hash) in applied), given)
        return Claim(assignment, given.slot if given else target.slot, target.priority, given, withheld)

    def options(self, assignment: Assignment, key: CohortKey) -> Iterator[Choice]:
        """What a cohort may get from an assignment, best first; nothing if the assignment does not match."""
        vector, sides = key.vector, key.sides
        for change, content in assignment.branches:
            if self.is_on_candidate(change, vector, sides):
                if not self.matches(content.revision.selector, vector):
                    return  # the candidate no longer selects these agents
                if (choice := self._choice(assignment, content, change.id, vector)) is not None:
                    yield choice
        stable, choice = assignment.stable, None
        if stable is not None and self.matches(stable.revision.selector, vector):
            choice = self._choice(assignment, stable, "", vector)
            if choice is not None:
                yield choice
        # Earlier revisions are a fallback for agents that fail on stable. Without a stable choice, only agents that have
        # applied one keep it.
        applied = {slot[1:] for slot in key.applied if slot[0] == assignment.kind} if choice is None else None
        if applied is not None and not applied:
            return
        for content in assignment.earlier:
            if applied is not None and not self.matches(content.revision.selector, vector):
                continue
            choice = self._choice(assignment, content, "", vector)
            if choice is not None and (applied is None or (choice.slot, choice.content_hash) in applied):
                yield choice

    def _choice(self, assignment: Assignment, content: Content, change: str, vector: int) -> Choice | None:
        if isinstance(content, ConfigContent):
            return Choice(assignment, content, content.content_hash, change)
        files = self.files(content, vector)
        return Choice(assignment, content, files.content_hash, change, files) if files is not None else None

    def files(self, content: PackageContent, vector: int) -> PackageSet | None:
        """The files of a package set for a cohort; None if a package was yanked or has no file for it."""

        def is_for(file: PackageFile) -> bool:
            return self.matches(file.selector, vector)

        picked = packages.pick(content.packages, is_for)
        if picked is None or any(package.key in self.snapshot.yanked for package, _ in picked.files):
            return None
        return picked

    def hash_of(self, content: Content, vector: int) -> bytes | None:
        """The hash of a content for a cohort; None if the content has no files for it."""
        if isinstance(content, ConfigContent):
            return content.content_hash
        files = self.files(content, vector)
        return files.content_hash if files is not None else None

    def is_on_candidate(self, change: PublishedRollout, vector: int, sides: int) -> bool:
        """Whether a cohort is on the candidate of a rollout."""
        if change.id in self.halted or not self.matches(change.selector, vector):
            return False
        side = self._side_of.get(change.id)
        return change.threshold >= rollout.EVERYONE if side is None else bool(sides >> side & 1)


def is_blocked(choice: Choice, failed: Failed) -> bool:
    """Whether the agent failed to apply this choice and nobody has requested a retry since."""
    if not failed:
        return False
    key = (choice.slot, choice.content_hash)
    retry = choice.assignment.published.retry
    return any((slot, content) == key and generation >= retry for slot, content, generation in failed)


def _retry(choices: Sequence[Choice], failed: Failed) -> int:
    """The agent's retry generation. 0 if none of the choices failed, so that a retry does not make it apply them again."""
    failed_contents = {(slot, content) for slot, content, _ in failed}
    return sum(c.assignment.published.retry for c in choices if (c.slot, c.content_hash) in failed_contents)


def config_hash(contents: Sequence[tuple[str, bytes]], retry: int = 0) -> ConfigHash:
    """The hash that agents see: covers the sorted (slot, content hash) pairs and the agent's retry generation."""
    digest = b"".join(
        len(slot.encode()).to_bytes(4, "big") + slot.encode() + content for slot, content in sorted(contents)
    )
    return ConfigHash(sha256(digest + retry.to_bytes(4, "big")))

"""From a snapshot and an agent to what it should run.

An agent belongs, for each slot, to one assignment: of all that are for it, the one of the highest priority, then of the
smallest name. Packages are one more slot, decided alike. Of its assignment it gets one thing: the candidate where its
bucket is below the rollout's threshold, else the stable revision. Where it failed at that before, or its region can make
nothing of it, it gets what it last applied of the same assignment, else the next best of it, else it keeps what it has:
a failure never changes which assignment an agent belongs to.
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
"""(slot, content hash, retry generation) of all that an agent could not apply."""
Applied = tuple[tuple[str, str, bytes], ...]
"""(kind of the assignment, slot, content hash) of all that an agent last applied."""


class CohortKey(NamedTuple):
    """What decides what an agent runs: agents of equal keys run the same."""

    vector: int
    """Outcomes of all selector terms, as bits."""
    capabilities: int
    """Those that decide, as bits."""
    sides: int
    """On which side of each rollout, as bits."""
    failed: Failed
    applied: Applied
    """What was applied; only of agents that cannot have what they should."""


class Slot(Protocol):
    """What an agent has of an assignment."""

    @property
    def slot(self) -> str:
        """Its name; empty for packages."""

    @property
    def content_hash(self) -> bytes:
        """Of what."""


def applied_of(configs: Iterable[Slot], fills: Iterable[Slot]) -> Applied:
    """What an agent last applied, of configs and of packages: both have a slot with an empty name."""
    return (
        *((CONFIG, slot.slot, slot.content_hash) for slot in configs),
        *((PACKAGES, slot.slot, slot.content_hash) for slot in fills),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What an assignment gives a cohort."""

    assignment: Assignment
    content: Content
    content_hash: bytes
    rollout: str
    """Whose candidate it is; empty for the stable revision."""
    files: PackageSet | None = None
    """Of packages: the files for this cohort."""

    @property
    def slot(self) -> str:
        """Key in the config map; empty for packages."""
        return self.content.revision.slot

    @property
    def priority(self) -> int:
        """Of the revision."""
        return self.content.revision.priority

    @property
    def config(self) -> ConfigContent:
        """The content of a choice for the config map."""
        assert isinstance(self.content, ConfigContent)
        return self.content


@dataclass(frozen=True, slots=True)
class Withheld:
    """What agents of a cohort should have of their assignment, and are not given."""

    kind: str
    """CONFIG or PACKAGES."""
    slot: str
    assignment: str
    content_hash: bytes
    """What they failed at; empty where their region can make nothing of it."""
    reason: str
    """Why their region cannot make it; empty where they failed: each has words of its own for that."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An assignment that a cohort belongs to, if no other one is before it."""

    assignment: Assignment
    slot: str
    priority: int
    """Of what the cohort should have of it, whatever it is given."""
    given: Choice | None
    """None: the cohort keeps what it has."""
    withheld: Withheld | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a cohort runs."""

    choices: tuple[Choice, ...]
    """By slot; empty: no config is offered."""
    config_hash: ConfigHash
    packages: Choice | None = None
    packages_hash: bytes = b""
    withheld: tuple[Withheld, ...] = ()

    @property
    def assignments(self) -> tuple[str, ...]:
        """Names of the assignments, by slot, that of the packages last."""
        found = [*self.choices, *([self.packages] if self.packages is not None else [])]
        return tuple(c.assignment.published.name for c in found)

    @property
    def hashes(self) -> tuple[bytes, bytes]:
        """Equal for decisions that agents cannot tell from each other."""
        return self.config_hash, self.packages_hash


NOTHING = Decision((), ConfigHash(b""))


class Evaluator:
    """A snapshot made quick to ask.

    Args:
        halted: rollouts whose candidate no agent is given here.
        frozen: rollouts whose candidate only those agents keep that have it.
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
        distinct.pop(EVERYBODY.identity, None)  # one that selects everybody needs no bit
        self._matcher = Matcher(distinct.values())
        self._number_of: dict[bytes, int | None] = {identity: i for i, identity in enumerate(distinct)}
        self._number_of[EVERYBODY.identity] = None
        # A rollout that nobody or everybody is on splits no cohort.
        self._splitting = [
            (change.id, change.threshold, content if change.id in frozen else None)
            for change, content in branches
            if change.id not in halted
            and (rollout.NOBODY < change.threshold < rollout.EVERYONE or (change.threshold and change.id in frozen))
        ]
        self._side_of = {change_id: i for i, (change_id, _, _) in enumerate(self._splitting)}
        self._lacks = any(
            a.refused is not None or (a.published.stable is None and a.earlier) for a in snapshot.assignments
        )

    @property
    def keying(self) -> tuple[object, ...]:
        """Equal for two evaluators that give every agent the same cohort key, so that no agent need be keyed anew."""
        splitting = [(name, threshold, content.revision if content else None)
                     for name, threshold, content in self._splitting]  # fmt: skip
        return (self._matcher.mentions, splitting, self._lacks)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of labels and attributes that a cohort depends on."""
        return self._matcher.keys

    @property
    def agent_ids(self) -> Collection[str]:
        """The agent ids that selectors name."""
        return self._matcher.agent_ids

    @property
    def splits(self) -> bool:
        """Whether a rollout is at a part of its agents: then which of them is told by each agent's id."""
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
            failed: what it could not apply.
            held: content hashes of what it was last offered, or has.
            applied: what it last applied.
        """
        vector = self._matcher.vector(facts)
        sides = 0
        for i, (change_id, threshold, content) in enumerate(self._splitting):
            if rollout.bucket(change_id, facts.agent_id) < threshold and (
                content is None or self.hash_of(content, vector) in held
            ):
                sides |= 1 << i
        return CohortKey(vector, deciding_capabilities, sides, failed, applied if failed or self._lacks else ())

    def looks_back(self, failed: Failed) -> bool:
        """Whether what an agent has, or applied, may decide; else only what it is, and what it failed at."""
        return bool(failed) or self._lacks or bool(self.frozen)

    def matches(self, selector: Selector, vector: int) -> bool:
        """Whether a selector of the snapshot matches a cohort."""
        number = self._number_of[selector.identity]
        return number is None or self._matcher.matches(number, vector)

    def decide_once(self, key: CohortKey) -> Decision:
        """As `decide`, remembered: for those who ask for many agents at once."""
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
        fill = claims.pop((True, ""), None)
        choices = self._choices([claims[lane] for lane in sorted(claims)], key)
        hash_ = ConfigHash(b"")
        if choices:
            hash_ = config_hash([(c.slot, c.content_hash) for c in choices], _retry(choices, key.failed))
        decision = Decision(choices, hash_, withheld=tuple(w for w in withheld if w is not None))
        if fill is None or fill.given is None or fill.given.files is None:
            return decision
        options = list(self.options(fill.assignment, key))
        # An agent must not take the old hash for what it failed at, nor for what it was forgiven.
        mine = (fill.given.slot, fill.given.content_hash)
        failed = sum(is_blocked(option, key.failed) for option in options)
        failed += sum((slot, content) == mine and generation < 0 for slot, content, generation in key.failed)
        hash_of_all = packages.all_packages_hash(fill.given.files, _retry([fill.given], key.failed), failed)
        return dataclasses.replace(decision, packages=fill.given, packages_hash=hash_of_all)

    def _choices(self, claims: Sequence[Claim], key: CohortKey) -> tuple[Choice, ...]:
        """The whole config of a cohort; empty where nothing can be offered."""
        choices = [claim.given for claim in claims if claim.given is not None]
        kept = [claim.slot for claim in claims if claim.given is None]
        for slot in kept if choices else []:
            # A config is always offered whole: what an agent keeps must be part of it, or nothing can be offered.
            applied = next((content for kind, name, content in key.applied if (kind, name) == (CONFIG, slot)), None)
            if applied is not None:
                again = self._find(slot, applied)
                if again is None:
                    return ()
                choices.append(again)
        return tuple(sorted(choices, key=lambda choice: choice.slot))

    def _find(self, slot: str, content_hash: bytes) -> Choice | None:
        """A config of any assignment of the snapshot."""
        for assignment in self.snapshot.assignments:
            for content in assignment.contents:
                if not isinstance(content, ConfigContent) or content.revision.slot != slot:
                    continue
                if content.content_hash == content_hash:
                    return Choice(assignment, content, content_hash, "")
        return None

    def claim(self, assignment: Assignment, key: CohortKey) -> Claim | None:
        """What an assignment would give a cohort if no other were there; None where it is not for it."""
        options = list(self.options(assignment, key))
        refused = assignment.refused
        if refused is not None and not self.matches(refused.revision.selector, key.vector):
            refused = None
        if refused is None and not options:
            return None
        if refused is not None and refused.revision is assignment.published.stable and options and options[0].rollout:
            refused = None  # what is refused is not what this cohort should have: it is on a candidate
        able = [option for option in options if not is_blocked(option, key.failed)]
        given = able[0] if able else None
        name = assignment.published.name
        if refused is not None:
            wanted: Revision = refused.revision
            withheld = Withheld(assignment.kind, wanted.slot, name, b"", refused.reason)
        elif given is options[0]:
            return Claim(assignment, given.slot, given.priority, given, None)
        else:
            wanted = options[0].content.revision
            withheld = Withheld(assignment.kind, wanted.slot, name, options[0].content_hash, "")
        # What it last applied is known to be good for it.
        had = {(slot, content) for kind, slot, content in key.applied if kind == assignment.kind}
        given = next((option for option in able if (option.slot, option.content_hash) in had), given)
        return Claim(assignment, given.slot if given else wanted.slot, wanted.priority, given, withheld)

    def options(self, assignment: Assignment, key: CohortKey) -> Iterator[Choice]:
        """What a cohort may get of an assignment, the best first; nothing if it is not for it."""
        vector, sides = key.vector, key.sides
        for change, content in assignment.branches:
            if self.is_on(change, vector, sides):
                if not self.matches(content.revision.selector, vector):
                    return  # the change takes the assignment from these agents
                if (choice := self._choice(assignment, content, change.id, vector)) is not None:
                    yield choice
        stable, choice = assignment.stable, None
        if stable is not None and self.matches(stable.revision.selector, vector):
            choice = self._choice(assignment, stable, "", vector)
            if choice is not None:
                yield choice
        # What it was before: for agents that cannot have what is stable, and where their region cannot, for who has it.
        had = {slot[1:] for slot in key.applied if slot[0] == assignment.kind} if choice is None else None
        if had is not None and not had:
            return
        for content in assignment.earlier:
            if had is not None and not self.matches(content.revision.selector, vector):
                continue
            choice = self._choice(assignment, content, "", vector)
            if choice is not None and (had is None or (choice.slot, choice.content_hash) in had):
                yield choice

    def _choice(self, assignment: Assignment, content: Content, change: str, vector: int) -> Choice | None:
        if isinstance(content, ConfigContent):
            return Choice(assignment, content, content.content_hash, change)
        files = self.files(content, vector)
        return Choice(assignment, content, files.content_hash, change, files) if files is not None else None

    def files(self, content: PackageContent, vector: int) -> PackageSet | None:
        """The files that a cohort takes of some packages; None where one has none for it, or was yanked."""

        def is_for(file: PackageFile) -> bool:
            return self.matches(file.selector, vector)

        found = packages.pick(content.packages, is_for)
        if found is None or any(package.key in self.snapshot.yanked for package, _ in found.files):
            return None
        return found

    def hash_of(self, content: Content, vector: int) -> bytes | None:
        """The content hash of something for a cohort; None where it has none for it."""
        if isinstance(content, ConfigContent):
            return content.content_hash
        files = self.files(content, vector)
        return files.content_hash if files is not None else None

    def is_on(self, change: PublishedRollout, vector: int, sides: int) -> bool:
        """Whether a cohort is on the candidate's side of a rollout."""
        if change.id in self.halted or not self.matches(change.selector, vector):
            return False
        side = self._side_of.get(change.id)
        return change.threshold >= rollout.EVERYONE if side is None else bool(sides >> side & 1)


def is_blocked(choice: Choice, failed: Failed) -> bool:
    """Whether the agent failed at this before, and nobody has asked to try again."""
    if not failed:
        return False
    key = (choice.slot, choice.content_hash)
    retry = choice.assignment.published.retry
    return any((slot, content) == key and generation >= retry for slot, content, generation in failed)


def _retry(choices: Sequence[Choice], failed: Failed) -> int:
    """The agent's retry generation: 0 for those that failed at nothing of this, so that they need not apply it anew."""
    tried = {(slot, content) for slot, content, _ in failed}
    return sum(c.assignment.published.retry for c in choices if (c.slot, c.content_hash) in tried)


def config_hash(contents: Sequence[tuple[str, bytes]], retry: int = 0) -> ConfigHash:
    """What agents see: over the sorted (slot, content hash) pairs and the agent's retry generation."""
    digest = b"".join(
        len(slot.encode()).to_bytes(4, "big") + slot.encode() + content for slot, content in sorted(contents)
    )
    return ConfigHash(sha256(digest + retry.to_bytes(4, "big")))

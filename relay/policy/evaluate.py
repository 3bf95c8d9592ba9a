"""From a snapshot and an agent to what it should run.

An assignment gives an agent one thing: the candidate where the agent's bucket is below the rollout's threshold, else the
stable revision; where the agent failed at that before, the next of them. Per slot, of all assignments that give it
something, the one of the highest priority wins, then of the smallest name. Packages are one more slot, decided alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from relay.ids import ConfigHash, sha256
from relay.policy import packages, rollout
from relay.policy.model import Selector
from relay.policy.packages import PackageFile, PackageSet
from relay.policy.selector import Facts, Matcher
from relay.policy.snapshot import PACKAGES, Assignment, ConfigContent, Content, PackageContent, Rollout, Snapshot

EVERYBODY = Selector()
Failed = tuple[tuple[str, bytes, int], ...]
"""(slot, content hash, retry generation) of all that an agent could not apply."""
CohortKey = tuple[int, int, int, Failed]
"""(outcomes of all selector terms, capability bits that decide, sides in all rollouts, failures)."""


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
class Decision:
    """What a cohort runs."""

    choices: tuple[Choice, ...]
    """By slot; empty: no config is offered."""
    config_hash: ConfigHash
    packages: Choice | None = None
    packages_hash: bytes = b""

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
        selectors = [*(c.revision.selector for c in contents), *(change.selector for change, _ in branches)]
        selectors += [s for c in contents if isinstance(c, PackageContent) for s in c.selectors.values()]
        # One that selects everybody needs no bit.
        distinct = {s.model_dump_json(): s for s in selectors if s != EVERYBODY}
        self._matcher = Matcher(distinct.values())
        number_of = {text: i for i, text in enumerate(distinct)}
        self._selector_of = {id(s): number_of.get(s.model_dump_json()) for s in selectors}
        # A rollout that nobody or everybody is on splits no cohort.
        self._splitting = [
            (change.id, change.threshold, content if change.id in frozen else None)
            for change, content in branches
            if change.id not in halted
            and (rollout.NOBODY < change.threshold < rollout.EVERYONE or (change.threshold and change.id in frozen))
        ]
        self._side_of = {change_id: i for i, (change_id, _, _) in enumerate(self._splitting)}

    @property
    def keying(self) -> tuple[object, ...]:
        """Equal for two evaluators that give every agent the same cohort key, so that no agent need be keyed anew."""
        splitting = [(name, threshold, content.revision if content else None)
                     for name, threshold, content in self._splitting]  # fmt: skip
        return (self._matcher.mentions, splitting)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of labels and attributes that a cohort depends on."""
        return self._matcher.keys

    def key(
        self, facts: Facts, deciding_capabilities: int, *, failed: Failed = (), held: Collection[bytes] = ()
    ) -> CohortKey:
        """The cohort of an agent.

        Args:
            failed: what it could not apply.
            held: content hashes of what it was last offered, or has.
        """
        vector = self._matcher.vector(facts)
        sides = 0
        for i, (change_id, threshold, content) in enumerate(self._splitting):
            if rollout.bucket(change_id, facts.agent_id) < threshold and (
                content is None or self.hash_of(content, vector) in held
            ):
                sides |= 1 << i
        return (vector, deciding_capabilities, sides, failed)

    def matches(self, selector: Selector, vector: int) -> bool:
        """Whether a selector of the snapshot matches a cohort."""
        number = self._selector_of[id(selector)]
        return number is None or self._matcher.matches(number, vector)

    def decide_once(self, key: CohortKey) -> Decision:
        """As `decide`, remembered: for those who ask for many agents at once."""
        if key not in self._decided:
            self._decided[key] = self.decide(key)
        return self._decided[key]

    def decide(self, key: CohortKey) -> Decision:
        """What agents of this cohort run."""
        chosen: dict[tuple[bool, str], Choice] = {}
        for assignment in self.snapshot.assignments:  # by name
            choice = self.given(assignment, key)
            if choice is None:
                continue
            lane = (assignment.kind == PACKAGES, choice.slot)
            if lane not in chosen or choice.priority > chosen[lane].priority:
                chosen[lane] = choice
        if not chosen:
            return NOTHING
        fill = chosen.pop((True, ""), None)
        choices = tuple(chosen[lane] for lane in sorted(chosen))
        hash_ = ConfigHash(b"")
        if choices:
            hash_ = config_hash([(c.slot, c.content_hash) for c in choices], _retry(choices, key[3]))
        if fill is None or fill.files is None:
            return Decision(choices, hash_)
        options = list(self.options(fill.assignment, key))
        failed = sum(is_blocked(option, key[3]) for option in options)
        return Decision(choices, hash_, fill, packages.all_packages_hash(fill.files, _retry([fill], key[3]), failed))

    def given(self, assignment: Assignment, key: CohortKey) -> Choice | None:
        """What a cohort would get of an assignment if no other were there; None for nothing."""
        for choice in self.options(assignment, key):
            if not is_blocked(choice, key[3]):
                return choice
        return None

    def options(self, assignment: Assignment, key: CohortKey) -> Iterator[Choice]:
        """What a cohort may get of an assignment, the best first; nothing if it is not for it."""
        vector, _, sides, _ = key
        for change, content in assignment.branches:
            if self.is_on(change, vector, sides):
                if not self.matches(content.revision.selector, vector):
                    return  # the change takes the assignment from these agents
                if (choice := self._choice(assignment, content, change.id, vector)) is not None:
                    yield choice
        stable = assignment.stable
        if stable is not None and self.matches(stable.revision.selector, vector):
            choice = self._choice(assignment, stable, "", vector)
            if choice is not None:
                yield choice

    def _choice(self, assignment: Assignment, content: Content, change: str, vector: int) -> Choice | None:
        if isinstance(content, ConfigContent):
            return Choice(assignment, content, content.content_hash, change)
        files = self.files(content, vector)
        return Choice(assignment, content, files.content_hash, change, files) if files is not None else None

    def files(self, content: PackageContent, vector: int) -> PackageSet | None:
        """The files that a cohort takes of some packages; None where one has none for it, or was yanked."""

        def is_for(file: PackageFile) -> bool:
            return self.matches(content.selector(file), vector)

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

    def is_on(self, change: Rollout, vector: int, sides: int) -> bool:
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

"""From a snapshot and an agent to what it should run.

Per slot the matching assignment of the highest priority, then of the smallest name; of it the candidate where the agent's
bucket is below the rollout's threshold, else the stable revision; where that does not exist, or the agent failed at it
before, the next that matches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from relay.ids import ConfigHash, sha256
from relay.policy import rollout
from relay.policy.model import Selector
from relay.policy.selector import Facts, Matcher
from relay.policy.snapshot import Assignment, Content, Rollout, Snapshot

EVERYBODY = Selector()
Failed = tuple[tuple[str, bytes, int], ...]
"""(slot, content hash, retry generation) of all that an agent could not apply."""
CohortKey = tuple[int, int, int, Failed]
"""(outcomes of all selector terms, capability bits that decide, sides in all rollouts, failures)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one slot holds for a cohort."""

    slot: str
    assignment: Assignment
    content: Content
    rollout: str
    """Whose candidate it is; empty for the stable revision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a cohort runs."""

    choices: tuple[Choice, ...]
    """By slot; never empty."""
    config_hash: ConfigHash

    @property
    def assignments(self) -> tuple[str, ...]:
        """Names of the assignments, by slot."""
        return tuple(c.assignment.published.name for c in self.choices)


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
        self._decided: dict[CohortKey, Decision | None] = {}
        branches = [branch for a in snapshot.assignments for branch in a.branches]
        contents = [c for a in snapshot.assignments for c in (a.stable, *(c for _, c in a.branches)) if c is not None]
        selectors = [*(c.revision.selector for c in contents), *(change.selector for change, _ in branches)]
        # One that selects everybody needs no bit.
        distinct = {s.model_dump_json(): s for s in selectors if s != EVERYBODY}
        self._matcher = Matcher(distinct.values())
        number_of = {text: i for i, text in enumerate(distinct)}
        self._selector_of = {id(s): number_of.get(s.model_dump_json()) for s in selectors}
        # A rollout that nobody or everybody is on splits no cohort.
        self._splitting = [
            (change.id, change.threshold, content.content_hash if change.id in frozen else None)
            for change, content in branches
            if change.id not in halted
            and (rollout.NOBODY < change.threshold < rollout.EVERYONE or (change.threshold and change.id in frozen))
        ]
        self._side_of = {change_id: i for i, (change_id, _, _) in enumerate(self._splitting)}

    @property
    def keying(self) -> tuple[object, ...]:
        """Equal for two evaluators that give every agent the same cohort key, so that no agent need be keyed anew."""
        return (self._matcher.mentions, tuple(self._splitting))

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
        sides = 0
        for i, (change_id, threshold, content_hash) in enumerate(self._splitting):
            on = rollout.bucket(change_id, facts.agent_id) < threshold
            if on and (content_hash is None or content_hash in held):
                sides |= 1 << i
        return (self._matcher.vector(facts), deciding_capabilities, sides, failed)

    def matches(self, selector: Selector, vector: int) -> bool:
        """Whether a selector of the snapshot matches a cohort."""
        number = self._selector_of[id(selector)]
        return number is None or self._matcher.matches(number, vector)

    def decide_once(self, key: CohortKey) -> Decision | None:
        """As `decide`, remembered: for those who ask for many agents at once."""
        if key not in self._decided:
            self._decided[key] = self.decide(key)
        return self._decided[key]

    def decide(self, key: CohortKey) -> Decision | None:
        """What agents of this cohort run; None: nothing is offered."""
        chosen: dict[str, Choice] = {}
        for assignment in self.snapshot.assignments:
            slot = assignment.published.slot
            if slot not in chosen:
                for choice in self.options(assignment, key):
                    if not is_blocked(choice, key[3]):
                        chosen[slot] = choice
                        break
        if not chosen:
            return None
        choices = tuple(chosen[slot] for slot in sorted(chosen))
        return Decision(
            choices, config_hash([(c.slot, c.content.content_hash) for c in choices], _retry(choices, key[3]))
        )

    def options(self, assignment: Assignment, key: CohortKey) -> Iterator[Choice]:
        """What a cohort may get of an assignment, the best first; nothing if it is not for it."""
        vector, _, sides, _ = key
        slot = assignment.published.slot
        for change, content in assignment.branches:
            if self.is_on(change, vector, sides):
                if not self.matches(content.revision.selector, vector):
                    return  # the change takes the assignment from these agents
                yield Choice(slot, assignment, content, change.id)
        if assignment.stable is not None and self.matches(assignment.stable.revision.selector, vector):
            yield Choice(slot, assignment, assignment.stable, "")

    def is_on(self, change: Rollout, vector: int, sides: int) -> bool:
        """Whether a cohort is on the candidate's side of a rollout."""
        if change.id in self.halted or not self.matches(change.selector, vector):
            return False
        side = self._side_of.get(change.id)
        return change.threshold >= rollout.EVERYONE if side is None else bool(sides >> side & 1)


def is_blocked(choice: Choice, failed: Failed) -> bool:
    """Whether the agent failed at this before, and nobody has asked to try again."""
    key = (choice.slot, choice.content.content_hash)
    retry = choice.assignment.published.retry
    return any((slot, content) == key and generation >= retry for slot, content, generation in failed)


def _retry(choices: Sequence[Choice], failed: Failed) -> int:
    """The agent's retry generation: 0 for those that failed at nothing of this, so that they need not apply it anew."""
    tried = {(slot, content) for slot, content, _ in failed}
    return sum(c.assignment.published.retry for c in choices if (c.slot, c.content.content_hash) in tried)


def config_hash(contents: Sequence[tuple[str, bytes]], retry: int = 0) -> ConfigHash:
    """What agents see: over the sorted (slot, content hash) pairs and the agent's retry generation."""
    digest = b"".join(
        len(slot.encode()).to_bytes(4, "big") + slot.encode() + content for slot, content in sorted(contents)
    )
    return ConfigHash(sha256(digest + retry.to_bytes(4, "big")))

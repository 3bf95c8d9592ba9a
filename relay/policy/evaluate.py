"""From a snapshot and an agent to what it should run.

Per slot the matching assignment of the highest priority, then of the smallest name; of it the candidate where the agent's
bucket is below the rollout's threshold, else the stable revision; where that does not exist, the next that matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.ids import ConfigHash, sha256
from relay.policy import rollout
from relay.policy.selector import Facts, Matcher
from relay.policy.snapshot import Assignment, Content, Snapshot

CohortKey = tuple[int, int, int]
"""(outcomes of all selector terms, capability bits that decide, sides in all rollouts)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one slot holds for a cohort."""

    slot: str
    assignment: Assignment
    content: Content


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
    """A snapshot made quick to ask."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._matcher = Matcher([a.published.selector for a in snapshot.assignments])
        # A rollout that nobody or everybody is on splits no cohort.
        self._rollouts = [
            (change.id, change.threshold)
            for change in (a.published.rollout for a in snapshot.assignments)
            if change is not None and rollout.NOBODY < change.threshold < rollout.EVERYONE
        ]
        self._side_of = {rollout_id: i for i, (rollout_id, _) in enumerate(self._rollouts)}

    @property
    def keying(self) -> tuple[object, ...]:
        """Equal for two evaluators that give every agent the same cohort key, so that no agent need be keyed anew."""
        return (self._matcher.mentions, tuple(self._rollouts))

    @property
    def keys(self) -> frozenset[str]:
        """Keys of labels and attributes that a cohort depends on."""
        return self._matcher.keys

    def key(self, facts: Facts, deciding_capabilities: int) -> CohortKey:
        """The cohort of an agent."""
        sides = 0
        for i, (rollout_id, threshold) in enumerate(self._rollouts):
            if rollout.bucket(rollout_id, facts.agent_id) < threshold:
                sides |= 1 << i
        return (self._matcher.vector(facts), deciding_capabilities, sides)

    def matching(self, vector: int) -> list[Assignment]:
        """All assignments that match, the winner of each slot first."""
        return [a for i, a in enumerate(self.snapshot.assignments) if self._matcher.matches(i, vector)]

    def decide(self, key: CohortKey) -> Decision | None:
        """What agents of this cohort run; None: nothing is offered."""
        vector, _, sides = key
        chosen: dict[str, Choice] = {}
        for assignment in self.matching(vector):
            slot = assignment.published.slot
            if slot in chosen:
                continue
            content = assignment.candidate if self._on_candidate(assignment, sides) else assignment.stable
            if content is not None:
                chosen[slot] = Choice(slot, assignment, content)
        if not chosen:
            return None
        choices = tuple(chosen[slot] for slot in sorted(chosen))
        return Decision(choices, config_hash([(c.slot, c.content.content_hash) for c in choices]))

    def _on_candidate(self, assignment: Assignment, sides: int) -> bool:
        change = assignment.published.rollout
        if change is None:
            return False
        side = self._side_of.get(change.id)
        return change.threshold >= rollout.EVERYONE if side is None else bool(sides >> side & 1)


def config_hash(contents: Sequence[tuple[str, bytes]], retry: int = 0) -> ConfigHash:
    """What agents see: over the sorted (slot, content hash) pairs and the agent's retry generation."""
    digest = b"".join(
        len(slot.encode()).to_bytes(4, "big") + slot.encode() + content for slot, content in sorted(contents)
    )
    return ConfigHash(sha256(digest + retry.to_bytes(4, "big")))

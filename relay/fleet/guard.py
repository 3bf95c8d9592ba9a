"""A region protects itself: a node takes a candidate back by itself where too many of its agents fail on it.

Cut off or not, a node may retreat and never advance: what it halts stays halted, over restarts too, until the control
plane ends the rollout or asks to try again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from relay.opamp.record import Record
from relay.policy.published import PublishedRollout
from relay.policy.snapshot import Assignment, Content, Snapshot

Halts = dict[str, str]
"""Rollout and retry generation, as `NAME/RETRY` → why it was halted here."""


def key(rollout: str, retry: int) -> str:
    """What a halt is remembered under: a retry is another try."""
    return f"{rollout}/{retry}"


def halted_rollouts(snapshot: Snapshot, halts: Mapping[str, str]) -> frozenset[str]:
    """Rollouts of the policy in force, superseded ones too, that are halted here."""
    return frozenset(change.id for a, change, _ in _going(snapshot) if key(change.id, a.published.retry) in halts)


def judge(
    snapshot: Snapshot,
    records: Iterable[Record],
    halts: Mapping[str, str],
    hash_of: Callable[[Content, Record], bytes | None],
) -> Halts:
    """What must be halted now, and is not yet.

    Args:
        records: of all agents of this node.
        hash_of: the content hash of something for an agent.
    """
    watched = [
        (assignment, change, content, change.local_guard)
        for assignment, change, content in _going(snapshot)
        if change.local_guard is not None and key(change.id, assignment.published.retry) not in halts
    ]
    if not watched:
        return {}
    held = list(records)
    found: Halts = {}
    for assignment, change, candidate, guard in watched:
        retry = assignment.published.retry
        bad = decided = 0
        for record in held:
            content = hash_of(candidate, record)
            if content is None:
                continue
            if any(f.content_hash == content and f.retry >= retry and not f.forgiven for f in record.failures):
                bad, decided = bad + 1, decided + 1
            elif record.runs(content):
                decided += 1
                bad += record.healthy() is False and record.healthy_before(content) is not False
        if bad >= guard.max_failures and decided >= guard.min_samples:
            found[key(change.id, retry)] = f"{bad} of {decided} agents failed or are unhealthy on it"
    return found


def _going(snapshot: Snapshot) -> list[tuple[Assignment, PublishedRollout, Content]]:
    return [(a, change, content) for a in snapshot.assignments for change, content in a.branches]


def frozen_rollouts(snapshot: Snapshot, policy_age_s: float) -> frozenset[str]:
    """Rollouts whose candidate no further agent is given, because nobody knows whether they still go on."""
    return frozenset(
        change.id
        for _, change, _ in _going(snapshot)
        if change.candidate_ttl_s is not None and policy_age_s > change.candidate_ttl_s
    )

"""The local guard: a node withdraws a candidate on its own if too many of its agents fail on it.

Whether or not the link is up, a node may withdraw a candidate but never advance one. A halt survives restarts; it ends when
the control plane ends the rollout or asks for a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from relay.opamp.record import Record
from relay.policy.published import PublishedRollout
from relay.policy.snapshot import Assignment, Content, Snapshot

Halts = dict[str, str]
"""`ROLLOUT/RETRY` → why it was halted here. RETRY is the retry generation."""


def key(rollout: str, retry: int) -> str:
    """The key of a halt. It includes the retry generation, so that a retry is not halted from the start."""
    return f"{rollout}/{retry}"


def halted_rollouts(snapshot: Snapshot, halts: Mapping[str, str]) -> frozenset[str]:
    """Rollouts of the current policy, superseded ones included, that are halted here."""
    return frozenset(
        change.id for a, change, _ in _active_rollouts(snapshot) if key(change.id, a.published.retry) in halts
    )


def judge(
    snapshot: Snapshot,
    records: Iterable[Record],
    halts: Mapping[str, str],
    hash_of: Callable[[Content, Record], bytes | None],
) -> Halts:
    """Find rollouts that must be halted and are not yet.

    Args:
        records: all agents of this node.
        hash_of: returns the hash of a content for an agent.
    """
    guarded = [
        (assignment, change, content, change.local_guard)
        for assignment, change, content in _active_rollouts(snapshot)
        if change.local_guard is not None and key(change.id, assignment.published.retry) not in halts
    ]
    if not guarded:
        return {}
    agents = list(records)
    new_halts: Halts = {}
    for assignment, change, candidate, guard in guarded:
        retry = assignment.published.retry
        bad = decided = 0
        for record in agents:
            content = hash_of(candidate, record)
            if content is None:
                continue
            if any(f.content_hash == content and f.retry >= retry and not f.forgiven for f in record.failures):
                bad, decided = bad + 1, decided + 1
            elif record.runs(content):
                decided += 1
                bad += record.healthy() is False and record.healthy_before(content) is not False
        if bad >= guard.max_failures and decided >= guard.min_samples:
            new_halts[key(change.id, retry)] = f"{bad} of {decided} agents failed or are unhealthy on it"
    return new_halts


def _active_rollouts(snapshot: Snapshot) -> list[tuple[Assignment, PublishedRollout, Content]]:
    return [(a, change, content) for a in snapshot.assignments for change, content in a.branches]


def frozen_rollouts(snapshot: Snapshot, policy_age_s: float) -> frozenset[str]:
    """Rollouts that may put no further agent on the candidate: the policy is too old to tell if they are still active."""
    return frozenset(
        change.id
        for _, change, _ in _active_rollouts(snapshot)
        if change.candidate_ttl_s is not None and policy_age_s > change.candidate_ttl_s
    )

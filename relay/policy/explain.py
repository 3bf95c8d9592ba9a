"""Why an agent gets what it gets: the steps of the decision in words. The node and the control plane say the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from relay.documents import canonical_json
from relay.policy import rollout
from relay.policy.evaluate import Choice, CohortKey, Evaluator, Failed, is_blocked
from relay.policy.mask import Mask
from relay.policy.model import Selector
from relay.policy.selector import Facts, canonical
from relay.policy.snapshot import Assignment, Rollout


def slots(
    evaluator: Evaluator,
    facts: Facts,
    deciding_capabilities: int,
    *,
    failed: Failed = (),
    held: Collection[bytes] = (),
) -> list[dict[str, Any]]:
    """One entry for each slot that any assignment fills, by name of the slot.

    Args:
        failed: what the agent could not apply.
        held: content hashes of what it was last offered, or has.
    """
    key = evaluator.key(facts, deciding_capabilities, failed=failed, held=held)
    decision = evaluator.decide(key)
    chosen = {choice.slot: choice for choice in decision.choices} if decision is not None else {}
    named = sorted({a.published.slot for a in evaluator.snapshot.assignments})
    config_hash = decision.config_hash.hex() if decision is not None else ""
    return [_slot(evaluator, facts, key, slot, chosen.get(slot), config_hash) for slot in named]


def _slot(
    evaluator: Evaluator, facts: Facts, key: CohortKey, slot: str, choice: Choice | None, config_hash: str
) -> dict[str, Any]:
    rejected = [
        {"assignment": a.published.name, "reason": _why_not(evaluator, facts, key, a, choice)}
        for a in evaluator.snapshot.assignments
        if a.published.slot == slot and (choice is None or a is not choice.assignment)
    ]
    if choice is None:
        return {
            "slot": slot,
            "assignment": None,
            "revision": "none",
            "bucket": None,
            "threshold": None,
            "rollout": None,
            "config_hash": "",
            "reasons": ["no assignment for this slot can be given to this agent: it keeps what it has"],
            "values": {},
            "rejected": rejected,
        }
    published = choice.assignment.published
    change = published.rollout
    if choice.rollout:
        change = next(c for c, _ in choice.assignment.branches if c.id == choice.rollout)
    resolved = choice.content.resolved
    return {
        "slot": slot,
        "assignment": published.name,
        "revision": "candidate" if choice.rollout else "stable",
        "bucket": rollout.bucket(change.id, facts.agent_id) if change else None,
        "threshold": change.threshold if change else None,
        "rollout": change.id if change else None,
        "config_hash": config_hash,
        "reasons": _reasons(evaluator, facts, key, choice),
        "values": {
            name: {"value": value, "from": resolved.origins[name]}
            for name, value in sorted(Mask().tree(resolved.values).items())
        },
        "rejected": rejected,
    }


def _reasons(evaluator: Evaluator, facts: Facts, key: CohortKey, choice: Choice) -> list[str]:
    published = choice.assignment.published
    found = [f"{term} matches" for term, _, matches in _terms(choice.content.revision.selector, facts) if matches]
    if not found:
        found.append(f"ConfigAssignment {published.name} is for every agent")
    found.append(f"priority {published.priority} is the highest of those that can be given")
    for change, content in choice.assignment.branches:
        found.append(_side(evaluator, facts, key, change))
        if change.id == choice.rollout:
            break
        if is_blocked(Choice(choice.slot, choice.assignment, content, change.id), key[3]):
            found.append(
                f"the agent failed at the candidate of {change.id} before; `opampctl rollout retry` forgives it"
            )
    return found


def _side(evaluator: Evaluator, facts: Facts, key: CohortKey, change: Rollout) -> str:
    """Which side of a rollout the agent is on, and why."""
    stage = f" in stage {change.stage}" if change.stage else ""
    if change.id in evaluator.halted:
        return f"rollout {change.id} was halted in this region: nobody is given its candidate"
    missing = [text for _, text, matches in _terms(change.selector, facts) if not matches]
    if missing:
        return f"rollout {change.id} is not for this agent yet: {'; '.join(missing)}"
    bucket, on = rollout.bucket(change.id, facts.agent_id), evaluator.is_on(change, key[0], key[2])
    if change.threshold >= rollout.EVERYONE and on:
        return f"rollout {change.id}{stage} is for everybody"
    where = "within" if bucket < change.threshold else "beyond"
    below = f"bucket {_share(bucket)} is {where} the threshold {_share(change.threshold)}"
    if bucket < change.threshold and not on:
        return f"{below} of rollout {change.id}{stage}, but the node was cut off for longer than candidate_ttl"
    return f"{below} of rollout {change.id}{stage}"


def _why_not(evaluator: Evaluator, facts: Facts, key: CohortKey, assignment: Assignment, winner: Choice | None) -> str:
    options = list(evaluator.options(assignment, key))
    if not options:
        contents = [c for c in (*(c for _, c in assignment.branches), assignment.stable) if c is not None]
        missing = [
            text
            for content in contents[:1]
            for _, text, matches in _terms(content.revision.selector, facts)
            if not matches
        ]
        if missing:
            return "; ".join(missing)
        return (
            "; ".join([_side(evaluator, facts, key, c) for c, _ in assignment.branches])
            or "it has no revision in force"
        )
    if all(is_blocked(option, key[3]) for option in options):
        return "the agent failed at it before; `opampctl rollout retry` forgives it"
    if winner is None:  # cannot be: an option that is not blocked would have been chosen
        return ""
    mine, theirs = assignment.published.priority, winner.assignment.published.priority
    name = winner.assignment.published.name
    if mine == theirs:
        return f"ConfigAssignment {name} has the same priority {mine} and comes first by name"
    return f"ConfigAssignment {name} has priority {theirs}, this one {mine}"


def _terms(selector: Selector, facts: Facts) -> list[tuple[str, str, bool]]:
    """(the term, what would have to be otherwise, whether it matches)."""
    found = []
    sources = (("label", selector.labels, facts.labels), ("attribute", selector.attributes, facts.attributes))
    for source, wanted, held in sources:
        for name, value in sorted(wanted.items()):
            has = held.get(name)
            matches = has is not None and canonical(has) == canonical(value)
            there = f"is {_short(has)}" if has is not None else "is not there"
            must = f"{source} {name} {there}, must be {_short(value)}"
            found.append((f"{source} {name} = {_short(value)}", must, matches))
    if selector.agent_ids:
        text = f"agent id {facts.agent_id}"
        found.append((f"{text} is named", f"{text} is not one of the {len(selector.agent_ids)} that are named",
                      facts.agent_id in selector.agent_ids))  # fmt: skip
    return found


def _share(bucket: int) -> str:
    return f"{100 * bucket / rollout.BUCKETS:.4f} %"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def lines(explained: Sequence[dict[str, Any]]) -> list[str]:
    """For people."""
    found = []
    for slot in explained:
        name = slot["slot"] or "(default)"
        if slot["assignment"] is None:
            found.append(f"slot {name}: nothing")
        else:
            found.append(f"slot {name}: {slot['assignment']}, {slot['revision']} revision")
        found += [f"    {reason}" for reason in slot["reasons"]]
        found += [f"    {key} = {_short(v['value'])} (from {v['from']})" for key, v in slot["values"].items()]
        found += [f"  not {r['assignment']}: {r['reason']}" for r in slot["rejected"]]
    return found

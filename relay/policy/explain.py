"""Explain in words why an agent gets what it gets. The node and the control plane give the same explanation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from relay.documents import canonical_json
from relay.policy import rollout
from relay.policy.evaluate import Applied, Choice, CohortKey, Evaluator, Failed, Withheld, is_blocked
from relay.policy.mask import Mask
from relay.policy.model import Selector, canonical
from relay.policy.published import CONFIG, PACKAGES, PublishedRollout
from relay.policy.selector import Facts
from relay.policy.snapshot import Assignment, Content, PackageContent


def explain(
    evaluator: Evaluator,
    facts: Facts,
    deciding_capabilities: int,
    *,
    failed: Failed = (),
    held: Collection[bytes] = (),
    applied: Applied = (),
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Explain what an agent gets.

    Args:
        failed: what the agent could not apply.
        held: content hashes that it was last offered, or has.
        applied: what it last applied.

    Returns:
        (an entry for each slot of any assignment, ordered by slot; an entry for packages, or None without package
        assignments).
    """
    key = evaluator.key(facts, deciding_capabilities, failed=failed, held=held, applied=applied)
    subject = _Subject(evaluator, facts, key)
    decision = evaluator.decide(key)
    withheld = {(w.kind, w.slot): w for w in decision.withheld}
    chosen = {choice.slot: choice for choice in decision.choices}
    configs = [a for a in evaluator.snapshot.assignments if a.kind == CONFIG]
    slot_names = sorted({revision.slot for a in configs for revision in a.revisions})
    slots = []
    for slot in slot_names:
        contending = [a for a in configs if any(revision.slot == slot for revision in a.revisions)]
        entry = _slot(subject, contending, chosen.get(slot), withheld.get((CONFIG, slot)))
        values = chosen[slot].config.resolved if slot in chosen else None
        masked = Mask().tree(values.values) if values is not None else {}
        slots.append(
            {
                "slot": slot,
                **entry,
                "config_hash": decision.config_hash.hex() if slot in chosen else "",
                "values": {name: {"value": masked[name], "from": values.origins[name]} for name in sorted(masked)}
                if values is not None
                else {},
            }
        )
    contending = [a for a in evaluator.snapshot.assignments if a.kind == PACKAGES]
    if not contending:
        return slots, None
    choice = decision.packages
    files = choice.files.files if choice is not None and choice.files is not None else ()
    return slots, {
        **_slot(subject, contending, choice, withheld.get((PACKAGES, ""))),
        "packages_hash": decision.packages_hash.hex(),
        "packages": {p.name: {"version": p.version, "sha256": f.sha256} for p, f in files},
    }


@dataclass(frozen=True, slots=True)
class _Subject:
    """The agent to explain."""

    evaluator: Evaluator
    facts: Facts
    key: CohortKey


def _slot(
    subject: _Subject, contending: Sequence[Assignment], choice: Choice | None, withheld: Withheld | None
) -> dict[str, Any]:
    owner = next((a for a in contending if withheld is not None and a.published.name == withheld.assignment), None)
    if owner is None and choice is not None:
        owner = choice.assignment
    rejected = [
        {"assignment": a.published.name, "reason": _why_not(subject, a, owner)}
        for a in sorted(contending, key=_priority)
        if a is not owner
    ]
    if choice is None or choice.assignment is not owner:
        reasons = ["no assignment applies to this agent"]
        if owner is not None and withheld is not None:
            reasons = [*_matches(owner, owner.revisions[0].selector, subject.facts), _why_withheld(withheld)]
        return {
            "assignment": owner.published.name if owner is not None else None,
            "revision": "none",
            "bucket": None,
            "threshold": None,
            "rollout": None,
            "reasons": [*reasons[:-1], f"{reasons[-1]}: it keeps what it has"],
            "rejected": rejected,
        }
    published = choice.assignment.published
    change = published.rollout
    if choice.rollout:
        change = next(c for c, _ in choice.assignment.branches if c.id == choice.rollout)
    return {
        "assignment": published.name,
        "revision": "candidate" if choice.rollout else "stable",
        "bucket": rollout.bucket(change.id, subject.facts.agent_id) if change else None,
        "threshold": change.threshold if change else None,
        "rollout": change.id if change else None,
        "reasons": _reasons(subject, choice, withheld),
        "rejected": rejected,
    }


def _priority(assignment: Assignment) -> tuple[int, str]:
    return -max((r.priority for r in assignment.revisions), default=0), assignment.published.name


def _matches(assignment: Assignment, selector: Selector, facts: Facts) -> list[str]:
    reasons = [f"{term} matches" for term, _, matches in _terms(selector, facts) if matches]
    return reasons or [f"{assignment.kind} {assignment.published.name} matches every agent"]


def _why_withheld(withheld: Withheld) -> str:
    if withheld.reason:
        return f"its newest revision is rejected here ({withheld.reason})"
    return "the agent failed to apply it before; `opampctl rollout retry` clears the failure"


def _reasons(subject: _Subject, choice: Choice, withheld: Withheld | None) -> list[str]:
    reasons = _matches(choice.assignment, choice.content.revision.selector, subject.facts)
    claim = subject.evaluator.claim(choice.assignment, subject.key)
    reasons.append(f"priority {claim.priority if claim is not None else choice.priority} is the highest")
    failed = {option.rollout for option in subject.evaluator.options(choice.assignment, subject.key)
              if is_blocked(option, subject.key.failed)}  # fmt: skip
    for change, _ in choice.assignment.branches:
        reasons.append(_side(subject, change))
        if change.id == choice.rollout:
            break
        if change.id in failed:
            reasons.append(
                f"the agent failed to apply the candidate of {change.id} before;"
                " `opampctl rollout retry` clears the failure"
            )
    if withheld is not None and not (choice.assignment.branches and failed):
        reasons.append(f"{_why_withheld(withheld)}: it gets the assignment's previous revision")
    return reasons


def _side(subject: _Subject, change: PublishedRollout) -> str:
    """Which side of a rollout the agent is on, and why."""
    evaluator, facts, key = subject.evaluator, subject.facts, subject.key
    stage = f" in stage {change.stage}" if change.stage else ""
    if change.id in evaluator.halted:
        return f"rollout {change.id} was halted in this region: no agent gets its candidate"
    missing = [text for _, text, matches in _terms(change.selector, facts) if not matches]
    if missing:
        return f"rollout {change.id} does not include this agent yet: {'; '.join(missing)}"
    bucket, on = rollout.bucket(change.id, facts.agent_id), evaluator.is_on_candidate(change, key.vector, key.sides)
    if change.threshold >= rollout.EVERYONE and on:
        return f"rollout {change.id}{stage} includes every agent"
    relation = "within" if bucket < change.threshold else "beyond"
    comparison = f"bucket {_share(bucket)} is {relation} the threshold {_share(change.threshold)}"
    if bucket < change.threshold and not on:
        stale = "but the node's policy is older than candidate_ttl, so no further agents get the candidate"
        return f"{comparison} of rollout {change.id}{stage}, {stale}"
    return f"{comparison} of rollout {change.id}{stage}"


def _why_not(subject: _Subject, assignment: Assignment, owner: Assignment | None) -> str:
    evaluator, facts, key = subject.evaluator, subject.facts, subject.key
    claim = evaluator.claim(assignment, key)
    if claim is None:
        contents = assignment.contents
        missing = [
            text
            for content in contents[:1]
            for _, text, matches in _terms(content.revision.selector, facts)
            if not matches
        ]
        if missing:
            return "; ".join(missing)
        file_problems = [reason for content in contents if (reason := _no_file(evaluator, content, key.vector))]
        sides = [_side(subject, c) for c, _ in assignment.branches]
        return "; ".join([*sides, *dict.fromkeys(file_problems)]) or "it has no revision in force"
    owned = evaluator.claim(owner, key) if owner is not None else None
    if owner is None or owned is None or owned.slot != claim.slot:
        return f"it fills slot {claim.slot or '(default)'} instead"
    name = f"{owner.kind} {owner.published.name}"
    if claim.priority == owned.priority:
        return f"{name} has the same priority {claim.priority} and comes first by name"
    return f"{name} has priority {owned.priority}, this one {claim.priority}"


def _no_file(evaluator: Evaluator, content: Content, vector: int) -> str:
    """Why a package set cannot be offered; empty if it can, or if the content is a config."""
    if not isinstance(content, PackageContent) or evaluator.files(content, vector) is not None:
        return ""
    for package in content.packages:
        if not any(evaluator.matches(file.selector, vector) for file in package.files):
            return f"package {package.key} has no file for this agent"
    yanked = (package.key for package in content.packages if package.key in evaluator.snapshot.yanked)
    return f"package {', '.join(yanked)} was yanked"


def _terms(selector: Selector, facts: Facts) -> list[tuple[str, str, bool]]:
    """(the term, what must change for it to match, whether it matches)."""
    terms = []
    sources = (("label", selector.labels, facts.labels), ("attribute", selector.attributes, facts.attributes))
    for source, required, actual in sources:
        for name, value in sorted(required.items()):
            current = actual.get(name)
            matches = current is not None and canonical(current) == canonical(value)
            state = f"is {_short(current)}" if current is not None else "is not set"
            mismatch = f"{source} {name} {state}, must be {_short(value)}"
            terms.append((f"{source} {name} = {_short(value)}", mismatch, matches))
    if selector.agent_ids:
        text = f"agent id {facts.agent_id}{'' if facts.id_counts else ' (not proved by its credential)'}"
        terms.append((f"{text} is listed", f"{text} is not one of the {len(selector.agent_ids)} listed",
                      facts.id_counts and facts.agent_id in selector.agent_ids))  # fmt: skip
    return terms


def _share(bucket: int) -> str:
    return f"{100 * bucket / rollout.BUCKETS:.4f} %"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def lines(slots: Sequence[dict[str, Any]], packages: dict[str, Any] | None = None) -> list[str]:
    """Format an explanation for people."""
    text = []
    for slot in slots:
        values = [f"    {key} = {_short(v['value'])} (from {v['from']})" for key, v in slot["values"].items()]
        text += _entry(f"slot {slot['slot'] or '(default)'}", slot, values)
    if packages is not None:
        files = [f"    {name} {p['version']} (sha256 {p['sha256'][:12]})" for name, p in packages["packages"].items()]
        text += _entry("packages", packages, files)
    return text


def _entry(title: str, entry: dict[str, Any], details: list[str]) -> list[str]:
    chosen = f"{entry['assignment']}, {entry['revision']} revision" if entry["assignment"] else "nothing"
    if entry["assignment"] and entry["revision"] == "none":
        chosen = f"{entry['assignment']}, no revision"
    return [
        f"{title}: {chosen}",
        *(f"    {reason}" for reason in entry["reasons"]),
        *details,
        *(f"  not {r['assignment']}: {r['reason']}" for r in entry["rejected"]),
    ]

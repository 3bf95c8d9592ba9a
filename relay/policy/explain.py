"""Why an agent gets what it gets: the steps of the decision in words. The node and the control plane say the same."""

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
        held: content hashes of what it was last offered, or has.
        applied: what it last applied.

    Returns:
        (one entry for each slot that any assignment fills, by name of the slot; one for packages, None where no assignment
        is of packages).
    """
    key = evaluator.key(facts, deciding_capabilities, failed=failed, held=held, applied=applied)
    asked = _Asked(evaluator, facts, key)
    decision = evaluator.decide(key)
    withheld = {(w.kind, w.slot): w for w in decision.withheld}
    chosen = {choice.slot: choice for choice in decision.choices}
    configs = [a for a in evaluator.snapshot.assignments if a.kind == CONFIG]
    named = sorted({revision.slot for a in configs for revision in a.revisions})
    slots = []
    for slot in named:
        contending = [a for a in configs if any(revision.slot == slot for revision in a.revisions)]
        found = _slot(asked, contending, chosen.get(slot), withheld.get((CONFIG, slot)))
        values = chosen[slot].config.resolved if slot in chosen else None
        shown = Mask().tree(values.values) if values is not None else {}
        slots.append(
            {
                "slot": slot,
                **found,
                "config_hash": decision.config_hash.hex() if slot in chosen else "",
                "values": {name: {"value": shown[name], "from": values.origins[name]} for name in sorted(shown)}
                if values is not None
                else {},
            }
        )
    contending = [a for a in evaluator.snapshot.assignments if a.kind == PACKAGES]
    if not contending:
        return slots, None
    fill = decision.packages
    offered = fill.files.files if fill is not None and fill.files is not None else ()
    return slots, {
        **_slot(asked, contending, fill, withheld.get((PACKAGES, ""))),
        "packages_hash": decision.packages_hash.hex(),
        "packages": {p.name: {"version": p.version, "sha256": f.sha256} for p, f in offered},
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """An agent of whom it is asked why."""

    evaluator: Evaluator
    facts: Facts
    key: CohortKey


def _slot(
    asked: _Asked, contending: Sequence[Assignment], choice: Choice | None, withheld: Withheld | None
) -> dict[str, Any]:
    owner = next((a for a in contending if withheld is not None and a.published.name == withheld.assignment), None)
    if owner is None and choice is not None:
        owner = choice.assignment
    rejected = [
        {"assignment": a.published.name, "reason": _why_not(asked, a, owner)}
        for a in sorted(contending, key=_priority)
        if a is not owner
    ]
    if choice is None or choice.assignment is not owner:
        reasons = ["no assignment applies to this agent"]
        if owner is not None and withheld is not None:
            reasons = [*_matches(owner, owner.revisions[0].selector, asked.facts), _why_withheld(withheld)]
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
        "bucket": rollout.bucket(change.id, asked.facts.agent_id) if change else None,
        "threshold": change.threshold if change else None,
        "rollout": change.id if change else None,
        "reasons": _reasons(asked, choice, withheld),
        "rejected": rejected,
    }


def _priority(assignment: Assignment) -> tuple[int, str]:
    return -max((r.priority for r in assignment.revisions), default=0), assignment.published.name


def _matches(assignment: Assignment, selector: Selector, facts: Facts) -> list[str]:
    found = [f"{term} matches" for term, _, matches in _terms(selector, facts) if matches]
    return found or [f"{assignment.kind} {assignment.published.name} matches every agent"]


def _why_withheld(withheld: Withheld) -> str:
    if withheld.reason:
        return f"its newest revision is rejected here ({withheld.reason})"
    return "the agent failed at it before; `opampctl rollout retry` clears that"


def _reasons(asked: _Asked, choice: Choice, withheld: Withheld | None) -> list[str]:
    found = _matches(choice.assignment, choice.content.revision.selector, asked.facts)
    claim = asked.evaluator.claim(choice.assignment, asked.key)
    found.append(f"priority {claim.priority if claim is not None else choice.priority} is the highest")
    failed = {option.rollout for option in asked.evaluator.options(choice.assignment, asked.key)
              if is_blocked(option, asked.key.failed)}  # fmt: skip
    for change, _ in choice.assignment.branches:
        found.append(_side(asked, change))
        if change.id == choice.rollout:
            break
        if change.id in failed:
            found.append(
                f"the agent failed at the candidate of {change.id} before; `opampctl rollout retry` clears that"
            )
    if withheld is not None and not (choice.assignment.branches and failed):
        found.append(f"{_why_withheld(withheld)}: it gets the assignment's previous revision")
    return found


def _side(asked: _Asked, change: PublishedRollout) -> str:
    """Which side of a rollout the agent is on, and why."""
    evaluator, facts, key = asked.evaluator, asked.facts, asked.key
    stage = f" in stage {change.stage}" if change.stage else ""
    if change.id in evaluator.halted:
        return f"rollout {change.id} was halted in this region: no agent is given its candidate"
    missing = [text for _, text, matches in _terms(change.selector, facts) if not matches]
    if missing:
        return f"rollout {change.id} does not include this agent yet: {'; '.join(missing)}"
    bucket, on = rollout.bucket(change.id, facts.agent_id), evaluator.is_on(change, key.vector, key.sides)
    if change.threshold >= rollout.EVERYONE and on:
        return f"rollout {change.id}{stage} includes every agent"
    where = "within" if bucket < change.threshold else "beyond"
    below = f"bucket {_share(bucket)} is {where} the threshold {_share(change.threshold)}"
    if bucket < change.threshold and not on:
        unheard = "but for longer than candidate_ttl the node has had no word that it still runs"
        return f"{below} of rollout {change.id}{stage}, {unheard}"
    return f"{below} of rollout {change.id}{stage}"


def _why_not(asked: _Asked, assignment: Assignment, owner: Assignment | None) -> str:
    evaluator, facts, key = asked.evaluator, asked.facts, asked.key
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
        lacking = [reason for content in contents if (reason := _no_file(evaluator, content, key.vector))]
        sides = [_side(asked, c) for c, _ in assignment.branches]
        return "; ".join([*sides, *dict.fromkeys(lacking)]) or "it has no revision in force"
    owned = evaluator.claim(owner, key) if owner is not None else None
    if owner is None or owned is None or owned.slot != claim.slot:
        return f"it gives the agent slot {claim.slot or '(default)'}"
    name = f"{owner.kind} {owner.published.name}"
    if claim.priority == owned.priority:
        return f"{name} has the same priority {claim.priority} and comes first in the order of names"
    return f"{name} has priority {owned.priority}, this one {claim.priority}"


def _no_file(evaluator: Evaluator, content: Content, vector: int) -> str:
    """Why a set of packages cannot be given; empty where it can, or is none."""
    if not isinstance(content, PackageContent) or evaluator.files(content, vector) is not None:
        return ""
    for package in content.packages:
        if not any(evaluator.matches(file.selector, vector) for file in package.files):
            return f"package {package.key} has no file for this agent"
    yanked = (package.key for package in content.packages if package.key in evaluator.snapshot.yanked)
    return f"package {', '.join(yanked)} was yanked"


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


def lines(slots: Sequence[dict[str, Any]], packages: dict[str, Any] | None = None) -> list[str]:
    """For people."""
    found = []
    for slot in slots:
        values = [f"    {key} = {_short(v['value'])} (from {v['from']})" for key, v in slot["values"].items()]
        found += _entry(f"slot {slot['slot'] or '(default)'}", slot, values)
    if packages is not None:
        files = [f"    {name} {p['version']} (sha256 {p['sha256'][:12]})" for name, p in packages["packages"].items()]
        found += _entry("packages", packages, files)
    return found


def _entry(title: str, entry: dict[str, Any], details: list[str]) -> list[str]:
    chosen = f"{entry['assignment']}, {entry['revision']} revision" if entry["assignment"] else "nothing"
    if entry["assignment"] and entry["revision"] == "none":
        chosen = f"{entry['assignment']}, nothing of it"
    return [
        f"{title}: {chosen}",
        *(f"    {reason}" for reason in entry["reasons"]),
        *details,
        *(f"  not {r['assignment']}: {r['reason']}" for r in entry["rejected"]),
    ]

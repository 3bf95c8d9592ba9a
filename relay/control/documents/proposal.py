"""What documents would change in the catalog, and every problem with that. Pure, except that checks look at the fleet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from relay.control.documents.checks import Checks
from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.control.ledger.state import State
from relay.documents import Document
from relay.errors import Problem
from relay.policy.model import ConfigTemplate
from relay.policy.reading import AnyDocument
from relay.policy.resources import template_resource


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of applying or deleting one document."""

    kind: str
    name: str
    action: str
    """`created`, `configured`, `unchanged` or `deleted`."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Proposal:
    """What documents would change."""

    after: Catalog
    applied: list[Applied] = field(default_factory=list)
    changed: list[AnyDocument] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    findings: list[Problem] = field(default_factory=list)
    """Errors in Collector configurations."""


def propose(state: State, parsed: list[tuple[Document, AnyDocument]], checks: Checks) -> Proposal:
    """What documents would change in the catalog of a state."""
    proposal = Proposal(state.catalog)
    unmatched, agent_count = checks.unmatched([d for _, d in parsed if isinstance(d, AnyAssignment)])
    for source, document in parsed:
        before = state.catalog.of(document.kind).get(document.key)
        if before == document:
            proposal.applied.append(applied(document, "unchanged", before, _not_in_force(state, document)))
            continue
        if isinstance(before, ConfigTemplate) and isinstance(document, ConfigTemplate) and not _same(before, document):
            reason = f"{document.key} already exists with different content; a version never changes: use a new one"
            proposal.problems.append(source.problem("metadata.version", reason))
            continue
        proposal.changed.append(document)
        findings = checks.findings(source, document)
        proposal.findings += [problem for problem, is_error in findings if is_error]
        warnings = tuple(str(problem) for problem, _ in findings) + _dropped_safeguards(before, document)
        if document.key in unmatched and isinstance(document, AnyAssignment):
            reason = f"matches none of the {agent_count} known agents"
            warnings += (str(source.problem("spec.target_selector", reason)),)
        proposal.applied.append(applied(document, "configured" if before else "created", before, warnings))
    proposal.after = state.catalog.put(*proposal.changed)
    sources: dict[tuple[str, str], Document] = {(d.kind, d.key): s for s, d in parsed}
    proposal.problems += checks.problems(proposal.after, proposal.changed, sources)
    moved = [d for d in proposal.changed if isinstance(d, AnyAssignment)]
    proposal.conflicts += [
        sources[(a.kind, a.key)].problem("spec.priority", reason)
        for a, reason in checks.conflicts(proposal.after, moved)
    ]
    return proposal


def _not_in_force(state: State, document: AnyDocument) -> tuple[str, ...]:
    """A warning if what an assignment declares is not in force, and no rollout is in progress."""
    assignment = state.assignments.get(document.key) if isinstance(document, AnyAssignment) else None
    if (
        assignment is None
        or assignment.declared == assignment.stable
        or assignment.pending
        or (assignment.rollout and assignment.rollout.active)
    ):
        return ()
    latest = f"{assignment.name}-{assignment.number}"
    if assignment.declared is not None and (yanked := assignment.declared.versions & state.catalog.yanked):
        return (f"package {', '.join(sorted(yanked))} was yanked; assign another version",)
    return (f"its last change was withdrawn or refused ({latest}); start again with `opampctl rollout retry {latest}`",)


def _dropped_safeguards(before: AnyDocument | None, after: AnyDocument) -> tuple[str, ...]:
    """Warnings about an assignment that drops its strategy or approval."""
    if not isinstance(before, AnyAssignment) or not isinstance(after, AnyAssignment):
        return ()
    warnings = []
    if before.spec.strategy and not after.spec.strategy:
        warnings.append(
            f"it has no strategy now: {before.spec.strategy} applies until a change completes; then they go out at once"
        )
    if before.spec.approval is not None and after.spec.approval is None:
        warnings.append(
            "it no longer asks for approval: this change still needs the approvals that were required before"
        )
    return tuple(warnings)


def _same(one: ConfigTemplate, other: ConfigTemplate) -> bool:
    """Whether two templates of one version have the same content. Document labels do not count."""
    return template_resource(one) == template_resource(other)


def applied(document: AnyDocument, action: str, before: AnyDocument | None, warnings: tuple[str, ...] = ()) -> Applied:
    """The result for one document, as shown to people."""
    return Applied(
        document.kind,
        document.key,
        action,
        before.model_dump(exclude_defaults=True) if before else None,
        None if action == "deleted" else document.model_dump(exclude_defaults=True),
        warnings,
    )

"""What documents would make of the catalog, and all that is wrong with that. Pure, but for what checks know of the fleet."""

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
    """What became of one document."""

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
    """Errors in Collectors' configurations."""


def propose(state: State, parsed: list[tuple[Document, AnyDocument]], checks: Checks) -> Proposal:
    """What documents would make of the catalog of a state."""
    proposal = Proposal(state.catalog)
    lonely, known = checks.unmatched([d for _, d in parsed if isinstance(d, AnyAssignment)])
    for source, document in parsed:
        before = state.catalog.of(document.kind).get(document.key)
        if before == document:
            proposal.applied.append(applied(document, "unchanged", before, _taken_back(state, document)))
            continue
        if isinstance(before, ConfigTemplate) and isinstance(document, ConfigTemplate) and not _same(before, document):
            reason = f"{document.key} already exists with different content; a version never changes: use a new one"
            proposal.problems.append(source.problem("metadata.version", reason))
            continue
        proposal.changed.append(document)
        findings = checks.findings(source, document)
        proposal.findings += [problem for problem, is_error in findings if is_error]
        warnings = tuple(str(problem) for problem, _ in findings) + _given_up(before, document)
        if document.key in lonely and isinstance(document, AnyAssignment):
            reason = f"matches none of the {known} known agents"
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


def _taken_back(state: State, document: AnyDocument) -> tuple[str, ...]:
    """A warning, where what an assignment asks for is not what goes out, and nothing is under way."""
    held = state.assignments.get(document.key) if isinstance(document, AnyAssignment) else None
    if held is None or held.declared == held.stable or held.pending or (held.rollout and held.rollout.active):
        return ()
    latest = f"{held.name}-{held.number}"
    if held.declared is not None and (gone := held.declared.versions & state.catalog.yanked):
        return (f"package {', '.join(sorted(gone))} was yanked; assign another version",)
    return (f"what it asks for was withdrawn or refused ({latest}); `opampctl rollout retry {latest}` starts again",)


def _given_up(before: AnyDocument | None, after: AnyDocument) -> tuple[str, ...]:
    """Warnings of an assignment that gives up what made its changes safe."""
    if not isinstance(before, AnyAssignment) or not isinstance(after, AnyAssignment):
        return ()
    found = []
    if before.spec.strategy and not after.spec.strategy:
        found.append(
            f"it names no strategy any more: changes go out by {before.spec.strategy} until one has, later ones at once"
        )
    if before.spec.approval is not None and after.spec.approval is None:
        found.append("it asks for no approval of its own any more: this change still needs those that were asked for")
    return tuple(found)


def _same(one: ConfigTemplate, other: ConfigTemplate) -> bool:
    """Whether two templates of one version say the same; labels of documents are for people."""
    return template_resource(one) == template_resource(other)


def applied(document: AnyDocument, action: str, before: AnyDocument | None, warnings: tuple[str, ...] = ()) -> Applied:
    """What became of a document, as people are told."""
    return Applied(
        document.kind,
        document.key,
        action,
        before.model_dump(exclude_defaults=True) if before else None,
        None if action == "deleted" else document.model_dump(exclude_defaults=True),
        warnings,
    )

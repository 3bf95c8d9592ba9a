"""Checks whether a document can be deleted."""

from __future__ import annotations

from relay.control.documents.checks import Checks
from relay.control.ledger.state import State
from relay.documents import Document
from relay.errors import Problem
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment
from relay.policy.reading import AnyDocument
from relay.policy.strategy import RolloutStrategy

_NEEDS_APPROVAL = (
    "its changes need approval, and so does deleting it: first get a change approved that removes it from all agents "
    "(observe_only: true, or a target_selector that matches no agent)"
)


def obstacles(state: State, document: AnyDocument, checks: Checks) -> list[Problem]:
    """Why a document cannot be deleted; empty if it can."""
    match document:
        case ConfigTemplate():
            users = state.users_of_template(document.key)
            reasons = [f"in use by ConfigAssignment {', '.join(sorted(users))}"] if users else []
        case RegionVariables():
            reasons = _unresolved_without(state, document.key, checks)
        case RolloutStrategy():
            strategy_users = sorted(
                f"{a.kind} {a.key}" for a in state.catalog.all_assignments() if a.spec.strategy == document.key
            )
            reasons = [f"in use by {', '.join(strategy_users)}"] if strategy_users else []
        case ConfigAssignment() | PackageAssignment():
            assignment = state.assignments[document.key]
            # Deleting changes what agents run, but has no rollout that somebody could approve.
            reasons = [_NEEDS_APPROVAL] if assignment.asked[0] and assignment.in_force else []
        case _:
            reasons = []
    source = Document(f"{document.kind}/{document.key}", None, 0)
    return [source.problem("", reason) for reason in reasons]


def _unresolved_without(state: State, region: str, checks: Checks) -> list[str]:
    catalog = state.catalog.without("RegionVariables", region)
    return [
        f"ConfigAssignment {assignment.key}: {reason}"
        for assignment in catalog.assignments.values()
        for _, reason in checks.unresolved(
            catalog, assignment, catalog.templates[assignment.spec.template.key], checks.live(region)
        )
    ]

"""Whether a person may make a change: what the role allows, and for which agents.

Templates and pushed packages move no agent, so they need no scope; what names them does. Variables of a region need that
region, although they change what assignments for everybody render there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from relay.auth.revocations import Kind
from relay.control.access.actor import Actor
from relay.control.access.revocations import Revocation
from relay.control.access.roles import Grants
from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.control.ledger.change import Change
from relay.control.ledger.differences import differences
from relay.control.ledger.state import State
from relay.errors import Forbidden
from relay.policy.kinds import KINDS
from relay.policy.model import RegionVariables, Selector
from relay.policy.reading import AnyDocument
from relay.policy.resources import Resource
from relay.policy.role_binding import RoleBinding
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy

_ADMINS_KINDS = frozenset({PackageSigningKey.__name__, RoleBinding.__name__})


def check_change(by: Actor, before: State, change: Change[Any]) -> None:
    """Check a whole change.

    Raises:
        Forbidden: it is not allowed; the message says why.
    """
    if by.grants is None:
        return
    after = change.state
    check_documents(by, before, after.catalog)
    acted_on = {step.after.assignment for step in change.steps if step.action}
    for version in _differing(before.catalog.packages, after.catalog.packages):
        # Another file in a version, and one that is withdrawn, reach all that have it.
        key = version.package.key
        users = before.users_of_package(key)
        is_withdrawn = key not in after.catalog.packages or key in after.catalog.yanked
        if is_withdrawn and not users and key in before.catalog.packages:
            check_everywhere(by, f"Package/{key}, which no assignment of yours uses,")
        acted_on |= users
    for name in sorted(acted_on):
        _check_assignment(by.grants, name, before, after.catalog)
    for revocation in _differing(before.revocations, after.revocations):
        _check_revocation(by.grants, revocation, before)
    for old, new in before.api_keys.changed_shards(after.api_keys):
        for key in _differing(old, new):
            if not by.grants.has(key.labels):
                raise Forbidden(f"API key {key.id} is for agents outside {_scope(by.grants)}")


def _check_revocation(grants: Grants, revocation: Revocation, state: State) -> None:
    """Who has a scope takes away, and gives back, only API keys of its agents: what else it names is anybody's."""
    key = state.api_keys.get(revocation.value) if revocation.kind is Kind.KEY else None
    if grants.is_scoped and (key is None or not grants.has(key.labels)):
        name = f"{revocation.kind.value} {revocation.value}"
        raise Forbidden(f"{name} may concern agents outside {_scope(grants)}; only its API keys can be revoked by id")


def check_everywhere(by: Actor, what: str) -> None:
    """Check that somebody may do what concerns all agents.

    Raises:
        Forbidden: their token has a scope.
    """
    if by.grants is not None and by.grants.is_scoped:
        raise Forbidden(f"{what} concerns agents outside {_scope(by.grants)}")


def check_documents(by: Actor, before: State, after: Catalog) -> None:
    """Check a change of documents, before anything else is known of it.

    Raises:
        Forbidden: it is not allowed; the message says why.
    """
    grants = by.grants
    if grants is None or before.catalog is after:
        return
    for kind in KINDS:
        old, new = before.catalog.of(kind), after.of(kind)
        if kind == Resource.TEMPLATE and (gone := sorted(old.keys() - new.keys())):
            check_everywhere(by, f"deleting {kind}/{gone[0]}")
        if old is not new:
            for document in _differing(old, new):
                _check_document(grants, document, before, after)


def check_name(by: Actor, state: State, kind: str, name: str) -> None:
    """Check whether somebody could change one document. One that does not exist yet is in nobody's way.

    Raises:
        Forbidden: they could not; the message says why.
    """
    if by.grants is None:
        return
    if kind in _ADMINS_KINDS:
        _check_admin(by.grants, f"{kind}/{name}")
    elif kind == Resource.VARIABLES:
        _check_region(by.grants, name)
    elif kind in KINDS and (document := state.catalog.of(kind).get(name)) is not None:
        _check_document(by.grants, document, state, state.catalog)


def _check_admin(grants: Grants, name: str) -> None:
    if not grants.is_admin:
        raise Forbidden(f"{name}: the {grants.described_roles} may not change this; an admin without a scope may")


def _check_region(grants: Grants, region: str) -> None:
    if not grants.covers(Selector(labels={"region": region})):
        raise Forbidden(f"RegionVariables/{region} is outside {_scope(grants)}")


def _check_document(grants: Grants, document: AnyDocument, before: State, after: Catalog) -> None:
    name = f"{document.kind}/{document.key}"
    if document.kind in _ADMINS_KINDS:
        _check_admin(grants, name)
    elif isinstance(document, RegionVariables):
        _check_region(grants, document.key)
    elif isinstance(document, RolloutStrategy):
        assignments = [a for catalog in (before.catalog, after) for a in catalog.all_assignments()]
        users = [assignment for assignment in assignments if assignment.spec.strategy == document.key]
        if grants.is_scoped and not users and document.key in before.catalog.strategies:
            raise Forbidden(f"{name} is used by no assignment of yours, so it may be others'")
        for assignment in users:
            _check_selectors(grants, f"{name}, which {assignment.key} uses,", [assignment.spec.target_selector])
    elif isinstance(document, AnyAssignment):
        _check_assignment(grants, document.key, before, after)


def _check_assignment(grants: Grants, name: str, before: State, after: Catalog) -> None:
    """An assignment's old and new selector, and those of all its revisions in force, must be in the scope."""
    selectors = [a.spec.target_selector for catalog in (before.catalog, after) for a in _named(catalog, name)]
    if name in before.assignments:
        selectors += [revision.selector for revision in before.assignments[name].in_force]
    _check_selectors(grants, f"assignment {name}", selectors)


def _named(catalog: Catalog, name: str) -> Iterator[AnyAssignment]:
    if name in catalog.assignments:
        yield catalog.assignments[name]
    if name in catalog.package_assignments:
        yield catalog.package_assignments[name]


def _check_selectors(grants: Grants, what: str, selectors: Iterable[Selector]) -> None:
    for selector in selectors:
        if not grants.covers(selector):
            raise Forbidden(
                f"{what} is for agents outside {_scope(grants)}; its target_selector must have these labels"
            )


def _scope(grants: Grants) -> str:
    return f"the scope {grants.described_scope}"


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Any]:
    """Values that were added, removed or changed; of the changed ones, both."""
    fresh, dropped = differences(before, after)
    yield from fresh.values()
    yield from (before[key] for key in (*fresh, *dropped) if key in before)

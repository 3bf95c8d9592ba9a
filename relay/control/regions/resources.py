"""Builds the policy of a region from a state. A region sees only what can concern it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from relay.auth.key_sets import RESOURCE, KeyChain
from relay.auth.signing import Signed
from relay.control.access.revocations import Revocation
from relay.control.access.tokens import Token
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.contents import renders
from relay.control.rollouts.revision import GlobalPackages, GlobalRevision, Pinned
from relay.control.rollouts.rollout import GOING
from relay.policy.access import Reader, readers_resource, revocations_resource
from relay.policy.packages import PublishedPackage
from relay.policy.published import PackageRevision
from relay.policy.resources import (
    Resource,
    assignment_resource,
    keys_resource,
    prefetch_resource,
    template_resource,
    yanked_resource,
)


def resources(state: State, region: str, download_keys: Sequence[bytes], access: AccessResources) -> dict[str, bytes]:
    """The whole policy of a region: resource name → payload.

    Args:
        download_keys: the first signs the region's download addresses, all are accepted.
        access: makes the resources that say who may connect.
    """
    return {
        **_policy(state.assignments.values(), state.pinned, region),
        **_packages(state, region, download_keys),
        **access.of(state, region),
    }


class AccessResources:
    """Who may connect, and whom nodes trust. What has not changed is not made again: there may be thousands."""

    def __init__(self) -> None:
        self._revocations: tuple[Mapping[str, Revocation], dict[str, bytes]] = {}, {}
        self._tokens: tuple[Mapping[str, Token], dict[str, bytes]] = {}, {}
        self._key_sets: tuple[Sequence[Signed], dict[str, bytes]] = (), {}

    def of(self, state: State, region: str) -> dict[str, bytes]:
        """The resources of a region: name → payload."""
        if self._revocations[0] is not state.revocations:
            revoked = [(r.kind.value, r.value) for r in state.revocations.values()]
            self._revocations = state.revocations, dict([revocations_resource(revoked)] if revoked else [])
        if self._tokens[0] is not state.tokens:
            readers = {
                token.digest.hex(): Reader(
                    owner=token.owner, scope=dict(token.grant.scope), expires_ms=token.expires_ms
                )
                for token in state.tokens.values()
                if token.on_nodes
            }
            self._tokens = state.tokens, dict([readers_resource(readers)] if readers else [])
        if self._key_sets[0] is not state.keys.key_sets:
            signed = state.keys.key_sets
            self._key_sets = signed, {RESOURCE: KeyChain.of(signed).resource()} if signed else {}
        return {**state.api_keys.resources(region), **self._revocations[1], **self._tokens[1], **self._key_sets[1]}


def declared_policy(state: State, region: str) -> dict[str, bytes]:
    """The policy of a region as it would be if every declared change were complete."""
    assignments = (
        AssignmentState(
            name,
            assignment.kind,
            assignment.declared is not None and assignment.declared.observe_only,
            stable=assignment.declared,
            retry=assignment.retry,
        )
        for name, assignment in state.assignments.items()
    )
    return _policy(assignments, state.pinned, region)


def _policy(assignments: Iterable[AssignmentState], pinned: Pinned, region: str) -> dict[str, bytes]:
    payloads: dict[str, bytes] = {}
    for state in assignments:
        if not state.concerns(region):
            continue
        published = state.for_region(region, lambda revision: renders(pinned, revision, region))
        name, payload = assignment_resource(state.kind, published)
        payloads[name] = payload
        for revision in published.revisions:
            if isinstance(revision, PackageRevision):
                payloads.update(
                    (name, pinned.contents[name]) for name in map(Resource.PACKAGE.name_of, revision.packages)
                )
            else:
                name, payload = template_resource(pinned.templates[revision.template])
                payloads[name] = payload
                if revision.variables:
                    variables = Resource.VARIABLES.name_of(revision.variables)
                    payloads[variables] = pinned.contents[variables]
    return payloads


def _packages(state: State, region: str, download_keys: Sequence[bytes]) -> dict[str, bytes]:
    """The package resources of a region; empty if no packages concern it."""
    pinned = list(_pinned(state, region))
    files = _files(state, region, pinned)
    if not files and not pinned:
        return {}
    yanked = state.catalog.yanked
    signing = {name: document.spec.public_key for name, document in state.catalog.signing_keys.items()}
    prefetches = state.prefetches.get(region, frozenset()) & files.keys()
    prefetches |= {f.sha256 for p in _prefetched(state, region) if p.key not in yanked for f in p.files}
    return dict(
        [
            keys_resource(download_keys, signing),
            yanked_resource(p.key for p in pinned if p.key in yanked),
            prefetch_resource(prefetches),
        ]
    )


def files_for(state: State, region: str) -> dict[str, int]:
    """SHA-256 → size of every file that a region may fetch: of its published packages and its prefetches."""
    return _files(state, region, _pinned(state, region))


def _files(state: State, region: str, pinned: Iterable[PublishedPackage]) -> dict[str, int]:
    yanked = state.catalog.yanked
    sizes = {f.sha256: f.size for p in pinned if p.key not in yanked for f in p.files}
    versions = state.catalog.packages.values()
    available = {f.sha256: f.size for v in versions if not v.yanked for f in v.package.files}
    prefetches = state.prefetches.get(region, frozenset())
    return sizes | {sha256: available[sha256] for sha256 in prefetches if sha256 in available}


def _pinned(state: State, region: str) -> Iterator[PublishedPackage]:
    """All package versions in a region's policy."""
    for assignment in state.assignments.values():
        if assignment.concerns(region):
            for revision in (*assignment.in_force, *assignment.earlier):
                yield from _versions(state.pinned, revision)


def _prefetched(state: State, region: str) -> Iterator[PublishedPackage]:
    """Package versions that a region fetches before their rollout begins there."""
    for assignment in state.assignments.values():
        rollout = assignment.rollout
        if rollout is not None and rollout.state in GOING and assignment.concerns(region):
            candidate = rollout.candidate
            if isinstance(candidate, GlobalPackages) and candidate.prefetch:
                yield from _versions(state.pinned, candidate)


def _versions(pinned: Pinned, revision: GlobalRevision) -> list[PublishedPackage]:
    return pinned.packages(revision) if isinstance(revision, GlobalPackages) else []

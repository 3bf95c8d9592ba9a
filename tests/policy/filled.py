"""Helpers for tests: package assignments."""

from __future__ import annotations

from typing import Any

from relay.policy.packages import PublishedPackage
from relay.policy.published import PACKAGES, PackageRevision, Published, PublishedRollout
from relay.policy.resources import assignment_resource, package_resource, yanked_resource
from relay.policy.snapshot import Snapshot, build

LINUX, WINDOWS = {"os.type": "linux"}, {"os.type": "windows"}


def package(name: str, version: str, *files: tuple[str, dict[str, str]]) -> PublishedPackage:
    """Files are (first digit of the hash, attributes)."""
    listed = [{"sha256": digit * 64, "size": 1, "attributes": attributes} for digit, attributes in files]
    return PublishedPackage.model_validate({"name": name, "version": version, "files": listed})


def resources(
    *stable: PublishedPackage,
    candidate: PublishedPackage | None = None,
    threshold: int = 0,
    yanked: tuple[str, ...] = (),
    name: str = "p",
    priority: int = 0,
    rollout: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, bytes]:
    """One assignment; `stable` is one set of packages."""
    revision = PackageRevision(packages=[v.pin for v in stable], priority=priority) if stable else None
    change = None
    if candidate is not None:
        fresh = PackageRevision(packages=[candidate.pin], priority=priority)
        change = PublishedRollout(id=f"{name}-1", candidate=fresh, threshold=threshold, **(rollout or {}))
    held = [package_resource(v) for v in (*stable, *([candidate] if candidate else []))]
    assignment = assignment_resource(PACKAGES, Published(name=name, stable=revision, rollout=change, **more))
    return dict([*held, assignment, yanked_resource(yanked)])


def filled(*stable: PublishedPackage, **more: Any) -> Snapshot:
    snapshot = build(resources(*stable, **more))
    assert snapshot.rejected == {}
    return snapshot

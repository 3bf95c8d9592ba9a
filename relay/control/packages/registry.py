"""The package registry: push, yank, delete and prefetch versions of packages.

Versions are not documents, because they come with files; but they live in the same catalog and change through the same
ledger. A version can gain files for other agents; its existing files never change.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from relay.aio.clock import Clock
from relay.control.access.actor import Actor
from relay.control.ledger.begin import Terms
from relay.control.ledger.catalog import Catalog, PackageVersion
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.draft import Draft
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.revise import drop_unavailable_fallbacks, revise
from relay.control.ledger.state import State
from relay.control.packages.blobs import Blobs
from relay.errors import Conflict, NotFound, Problem, Refused, TooLarge
from relay.fleet.view import rfc3339
from relay.policy.packages import MAX_FILES, PackageFile, PublishedPackage
from relay.policy.signatures import problem_with, public_key


class Packages:
    """All versions of all packages.

    Args:
        max_bytes: the limit for all files together.
    """

    def __init__(self, ledger: Ledger, terms: Terms, blobs: Blobs, *, clock: Clock, max_bytes: int) -> None:
        self._ledger = ledger
        self._terms = terms
        self.blobs = blobs
        self._clock = clock
        self._max_bytes = max_bytes
        self._files = asyncio.Lock()
        """Held from checking which files are in use until one is stored or removed."""

    @property
    def _catalog(self) -> Catalog:
        return self._ledger.state.catalog

    # ---- changes

    async def register(self, package: PublishedPackage, *, actor: Actor) -> str:
        """Add the one file of `package` to its version. Its upload must be complete.

        Returns:
            `created`, `added` (to an existing version) or `unchanged`.

        Raises:
            Conflict: the version has a different file for the same agents, has another type, or was yanked.
            Refused: its signature is not valid.
            TooLarge: all packages together would exceed the limit.
        """
        (file,) = package.files
        async with self._files:
            self._check_acceptable(package, file)
            await self.blobs.finish(file.sha256, file.size)
            return await self._ledger.change(
                actor, lambda state, now_ms: self._push(state, package, actor.name, now_ms)
            )

    def _check_acceptable(self, package: PublishedPackage, file: PackageFile) -> None:
        """Raise what `register` would raise, before the file is stored."""
        if (version := self._catalog.packages.get(package.key)) is not None:
            _with_file(version, package)
        if file.signature:
            keys = {name: public_key(k.spec.public_key) for name, k in self._catalog.signing_keys.items()}
            if reason := problem_with(package, file, keys, self._clock.unix_ms()):
                raise Refused([Problem(f"Package/{package.key}", 0, "signature", reason)])
        files = self._catalog.package_files()
        if file.sha256 not in files and sum(files.values()) + file.size > self._max_bytes:
            raise TooLarge(f"all packages together may be at most {self._max_bytes} bytes (storage.packages.max_bytes)")

    def _push(self, state: State, package: PublishedPackage, by: str, now_ms: int) -> Change[str]:
        version = state.catalog.packages.get(package.key)
        if version is None:
            fresh, action = PackageVersion(package, now_ms, by), "created"
        elif (merged := _with_file(version, package)) is not None:
            fresh, action = dataclasses.replace(version, package=merged), "added"
        else:
            return Change(state, "unchanged")
        (file,) = package.files
        reason = f"{file.sha256[:16]} {json.dumps(file.attributes)}"
        return self._put(state, fresh, "push", reason, by, now_ms, action)

    async def yank(self, key: str, reason: str, *, actor: Actor) -> None:
        """Withdraw a version everywhere at once. Rollouts to it end, and agents are no longer offered it.

        Raises:
            NotFound: there is no such version.
        """
        await self._ledger.change(actor, lambda state, now_ms: self._yank(state, key, reason, actor.name, now_ms))

    def _yank(self, state: State, key: str, reason: str, by: str, now_ms: int) -> Change[str]:
        version = _find(state.catalog, key)
        if version.yanked:
            return Change(state, "unchanged")
        yanked = dataclasses.replace(version, yanked=reason or f"yanked by {by}")
        return self._put(state, yanked, "yank", reason, by, now_ms, "yanked")

    def _put(
        self, state: State, version: PackageVersion, action: str, reason: str, by: str, now_ms: int, answer: str
    ) -> Change[str]:
        """Put a new or changed version into the catalog, and revise the rollouts."""
        key = version.package.key
        before = state.catalog.packages.get(key)
        entry = Entry(
            action, f"Package/{key}", _digest(before.package) if before else "", _digest(version.package), reason
        )
        draft = revise(state, state.catalog.put_packages(version), self._terms, by=by, now_ms=now_ms)
        return draft.change(answer, [entry])

    async def delete(self, key: str, *, actor: Actor) -> None:
        """Delete a version, and those of its files that no other version has.

        Raises:
            NotFound: there is no such version.
            Conflict: an assignment uses it.
        """
        async with self._files:
            package = await self._ledger.change(actor, lambda state, _: _delete(state, key))
            remaining = self._catalog.package_files()
            for file in package.files:
                if file.sha256 not in remaining:
                    await self.blobs.delete(file.sha256)

    async def prefetch(self, key: str, regions: Iterable[str], *, actor: Actor) -> list[str]:
        """Let regions fetch a version before an agent needs it. Returns the regions.

        Raises:
            NotFound: there is no such version.
            Conflict: it was yanked.
        """
        targets = sorted(set(regions))
        return await self._ledger.change(actor, lambda state, _: _prefetch(state, key, targets))

    # ---- views

    def listing(self) -> list[dict[str, Any]]:
        """All versions, by name and version."""
        return [self.view(key) for key in sorted(self._catalog.packages)]

    def view(self, key: str) -> dict[str, Any]:
        """One version.

        Raises:
            NotFound: there is none.
        """
        version = _find(self._catalog, key)
        return {
            **version.package.model_dump(),
            "bytes": sum(f.size for f in version.package.files),
            "created": rfc3339(version.created_ms),
            "created_by": version.created_by,
            "yanked": version.yanked,
            "used_by": sorted(self._ledger.state.users_of_package(key)),
        }


def _find(catalog: Catalog, key: str) -> PackageVersion:
    if key not in catalog.packages:
        raise NotFound(f"there is no package {key}")
    return catalog.packages[key]


def _delete(state: State, key: str) -> Change[PublishedPackage]:
    package = _find(state.catalog, key).package
    users = state.users_of_package(key) | {
        a.key for a in state.catalog.package_assignments.values() if any(p.key == key for p in a.spec.packages)
    }
    if users:
        raise Conflict(f"package {key} is in use by PackageAssignment {', '.join(sorted(users))}")
    catalog = state.catalog.without_package(key)
    remaining = catalog.package_files().keys()
    prefetches = {region: files & remaining for region, files in state.prefetches.items() if files & remaining}
    draft = Draft(dataclasses.replace(state, prefetches=prefetches), catalog=catalog)
    drop_unavailable_fallbacks(draft)
    return draft.change(package, [Entry("delete", f"Package/{key}", _digest(package))])


def _prefetch(state: State, key: str, regions: list[str]) -> Change[list[str]]:
    version = _find(state.catalog, key)
    if version.yanked:
        raise Conflict(f"package {key} was yanked")
    files = frozenset(f.sha256 for f in version.package.files)
    prefetches = {region: state.prefetches.get(region, frozenset()) | files for region in regions}
    after = dataclasses.replace(state, prefetches={**state.prefetches, **prefetches})
    return Change(after, regions, entries=[Entry("prefetch", f"Package/{key}", reason=" ".join(regions))])


def _with_file(version: PackageVersion, package: PublishedPackage) -> PublishedPackage | None:
    """The version with one more file; None if it already has it."""
    current, (file,) = version.package, package.files
    if version.yanked:
        raise Conflict(f"package {package.key} was yanked: {version.yanked}")
    if current.type != package.type:
        raise Conflict(f"package {package.key} has type {current.type}, not {package.type}")
    same: PackageFile | None = next((f for f in current.files if f.attributes == file.attributes), None)
    if same is not None:
        if same.sha256 != file.sha256:
            audience = json.dumps(file.attributes) if file.attributes else "all agents"
            raise Conflict(
                f"package {package.key} has different content for {audience}; a version never changes: push a new one"
            )
        if same == file or not file.signature:
            return None
        return current.model_copy(update={"files": [file if f is same else f for f in current.files]})
    if len(current.files) >= MAX_FILES:
        raise Conflict(f"package {package.key} has {MAX_FILES} files, which is the maximum")
    return current.model_copy(update={"files": [*current.files, file]})


def _digest(package: PublishedPackage) -> str:
    return package.pin.rpartition("@")[2]

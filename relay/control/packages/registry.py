"""The packages: versions and their files, what was yanked, and what regions are to fetch before anybody needs it.

Versions are no documents, since they come with bytes; they live in the same catalog and change in the same transactions. A
version may gain files for other agents; a file that it has never changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.aio.clock import Clock
from relay.control.documents.apply import Documents
from relay.control.ledger import audit
from relay.control.ledger.catalog import Catalog
from relay.control.ledger.revisions import Revisions
from relay.control.packages.blobs import Blobs
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.control.storage.sealed import read_truth
from relay.documents import canonical_json
from relay.errors import Conflict, NotFound, Problem, Refused, StoreError, TooLarge
from relay.fleet.view import rfc3339
from relay.policy.packages import MAX_FILES, PackageFile, PublishedPackage
from relay.policy.signatures import problem_with, public_key
from relay.policy.snapshot import keys_resource, prefetch_resource, yanked_resource

_MASTER = "download-keys"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One version, and what is known of it beside its files."""

    package: PublishedPackage
    created_ms: int
    created_by: str
    yanked: str = ""
    """Why; empty where it was not."""


class Packages:
    """All versions. `load` first; the catalog holds the same versions for those who only look.

    Args:
        max_bytes: of all files together.
    """

    def __init__(
        self,
        database: Database,
        documents: Documents,
        revisions: Revisions,
        blobs: Blobs,
        *,
        clock: Clock,
        max_bytes: int,
    ) -> None:
        self._database = database
        self._documents = documents
        self._revisions = revisions
        self.blobs = blobs
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._prefetch: dict[str, set[str]] = {}
        """Region → SHA-256 of files that it should have."""
        self._master = b""
        self._files = asyncio.Lock()
        """Held from looking which files are used to storing or removing one."""

    async def load(self, catalog: Catalog) -> None:
        """Read all versions into `catalog`, before anything is made of them."""
        async with self._database.write() as connection:
            rows = await read_truth(connection, schema.packages)
            wanted = (await connection.execute(sa.select(schema.prefetches))).all()
            secrets = await read_truth(connection, schema.secrets, schema.secrets.c.name == _MASTER)
            self._master = secrets[0].value if secrets else b""
            if not self._master:
                self._master = os.urandom(_KEY_BYTES)
                await connection.execute(sa.insert(schema.secrets), [{"name": _MASTER, "value": self._master}])
        for row in rows:
            package = PublishedPackage.model_validate(json.loads(row.body))
            if package.key != f"{row.name}@{row.version}":
                name = f"{row.name} {row.version} holds {package.key}"
                raise StoreError(f"table packages: {name}: it is damaged: restore a backup")
            self._entries[package.key] = Entry(package, row.created_ms, row.created_by, row.yanked)
        for row in wanted:
            self._prefetch.setdefault(row.region, set()).add(row.sha256)
        self._tell(catalog)

    def _tell(self, catalog: Catalog) -> None:
        catalog.packages = {key: entry.package for key, entry in self._entries.items()}
        catalog.yanked = frozenset(key for key, entry in self._entries.items() if entry.yanked)

    # ---- changes

    async def register(self, package: PublishedPackage, *, actor: str) -> str:
        """Add the one file of `package`, whose upload is complete, to its version.

        Returns:
            `created`, `added` (to a version that was there) or `unchanged`.

        Raises:
            Conflict: the version has other bytes for the same agents, is of another type, or was yanked.
            Refused: its signature is not good.
            TooLarge: no room.
        """
        async with self._files:
            return await self._register(package, actor)

    async def _register(self, package: PublishedPackage, actor: str) -> str:
        (file,) = package.files
        if (entry := self._entries.get(package.key)) is not None:
            _with_file(entry, package)  # before anything is stored for it
        if file.signature:
            keys = {name: public_key(k.spec.public_key) for name, k in self._documents.current.signing_keys.items()}
            if reason := problem_with(package, file, keys, self._clock.unix_ms()):
                raise Refused([Problem(f"Package/{package.key}", 0, "signature", reason)])
        held = {f.sha256: f.size for e in self._entries.values() for f in e.package.files}
        if file.sha256 not in held and sum(held.values()) + file.size > self._max_bytes:
            raise TooLarge(f"all packages together may have {self._max_bytes} bytes (storage.packages.max_bytes)")
        await self.blobs.finish(file.sha256, file.size)
        async with self._revisions.changing:
            entry = self._entries.get(package.key)
            if entry is None:
                fresh, action = Entry(package, self._clock.unix_ms(), actor), "created"
            else:
                merged = _with_file(entry, package)
                if merged is None:
                    return "unchanged"
                fresh, action = Entry(merged, entry.created_ms, entry.created_by), "added"
            await self._put(fresh, actor, "push", f"{file.sha256[:16]} {json.dumps(file.attributes)}")
        return action

    async def yank(self, key: str, reason: str, *, actor: str) -> None:
        """Refuse a version everywhere at once; rollouts to it end, and agents that have it are offered nothing of it.

        Raises:
            NotFound: there is no such version.
        """
        async with self._revisions.changing:
            entry = self._find(key)
            if not entry.yanked:
                yanked = Entry(entry.package, entry.created_ms, entry.created_by, reason or f"yanked by {actor}")
                await self._put(yanked, actor, "yank", reason)

    async def delete(self, key: str, *, actor: str) -> None:
        """Forget a version, and its files where no other one has them.

        Raises:
            NotFound: there is no such version.
            Conflict: an assignment uses it.
        """
        async with self._files:
            await self._delete(key, actor)

    async def _delete(self, key: str, actor: str) -> None:
        async with self._revisions.changing:
            entry = self._find(key)
            users = self._revisions.users_of_package(key) | {
                a.key
                for a in self._documents.current.package_assignments.values()
                if any(p.key == key for p in a.spec.packages)
            }
            if users:
                raise Conflict(f"package {key} is in use by PackageAssignment {', '.join(sorted(users))}")
            name, _, version = key.partition("@")
            async with self._database.write() as connection:
                await remove(connection, schema.packages, [{"name": name, "version": version}])
                record = audit.Entry(actor, "delete", f"Package/{key}", _digest(entry.package))
                await audit.add(connection, [record], self._clock.unix_ms())
            del self._entries[key]
            self._tell(self._documents.current)
        kept = {f.sha256 for e in self._entries.values() for f in e.package.files}
        for file in entry.package.files:
            if file.sha256 not in kept:
                await self.blobs.delete(file.sha256)

    async def prefetch(self, key: str, regions: Iterable[str], *, actor: str) -> list[str]:
        """Let regions fetch a version before anybody needs it. Gives the regions.

        Raises:
            NotFound: there is no such version.
            Conflict: it was yanked.
        """
        async with self._revisions.changing:
            entry = self._find(key)
            if entry.yanked:
                raise Conflict(f"package {key} was yanked")
            wanted = sorted(set(regions))
            files = [f.sha256 for f in entry.package.files]
            async with self._database.write() as connection:
                rows = [{"region": region, "sha256": file} for region in wanted for file in files]
                await replace(connection, schema.prefetches, rows)
                record = audit.Entry(actor, "prefetch", f"Package/{key}", reason=" ".join(wanted))
                await audit.add(connection, [record], self._clock.unix_ms())
            for region in wanted:
                self._prefetch.setdefault(region, set()).update(files)
        return wanted

    async def _put(self, entry: Entry, actor: str, action: str, reason: str) -> None:
        package = entry.package
        before = self._entries.get(package.key)
        record = audit.Entry(
            actor, action, f"Package/{package.key}", _digest(before.package) if before else "", _digest(package), reason
        )
        row = {
            "name": package.name,
            "version": package.version,
            "body": canonical_json(package.model_dump()).decode(),
            "created_ms": entry.created_ms,
            "created_by": entry.created_by,
            "yanked": entry.yanked,
        }
        catalog = self._documents.current.copy()
        catalog.packages[package.key] = package
        if entry.yanked:
            catalog.yanked |= {package.key}

        async def write(connection: AsyncConnection) -> None:
            await replace(connection, schema.packages, [row])

        await self._documents.put_catalog(catalog, [record], write, actor=actor)
        self._entries[package.key] = entry

    # ---- views

    def _find(self, key: str) -> Entry:
        if key not in self._entries:
            raise NotFound(f"there is no package {key}")
        return self._entries[key]

    def listing(self) -> list[dict[str, Any]]:
        """All versions, by name and version."""
        return [self.view(key) for key in sorted(self._entries)]

    def view(self, key: str) -> dict[str, Any]:
        """One version.

        Raises:
            NotFound: there is none.
        """
        entry = self._find(key)
        return {
            **entry.package.model_dump(),
            "bytes": sum(f.size for f in entry.package.files),
            "created": rfc3339(entry.created_ms),
            "created_by": entry.created_by,
            "yanked": entry.yanked,
            "used_by": sorted(self._revisions.users_of_package(key)),
        }

    # ---- for nodes

    def files_for(self, region: str) -> dict[str, int]:
        """SHA-256 → bytes of every file that a region may fetch: of what is published there, and to be fetched ahead."""
        pinned = [p for p in self._revisions.pinned(region) if not self._is_yanked(p.key)]
        found = {f.sha256: f.size for p in pinned for f in p.files}
        known = {f.sha256: f.size for e in self._entries.values() if not e.yanked for f in e.package.files}
        return found | {sha256: known[sha256] for sha256 in self._prefetch.get(region, ()) if sha256 in known}

    def resources(self, region: str) -> dict[str, bytes]:
        """What a region is to hold beside its assignments; nothing where no packages concern it."""
        files = self.files_for(region)
        pinned = self._revisions.pinned(region)
        if not files and not pinned:
            return {}
        key = hmac.new(self._master, region.encode(), hashlib.sha256).digest()
        signing: Mapping[str, str] = {
            name: document.spec.public_key for name, document in self._documents.current.signing_keys.items()
        }
        ahead = self._prefetch.get(region, set()) & files.keys()
        ahead |= {f.sha256 for p in self._revisions.ahead(region) if not self._is_yanked(p.key) for f in p.files}
        return dict(
            [
                keys_resource([key], signing),
                yanked_resource(p.key for p in pinned if self._is_yanked(p.key)),
                prefetch_resource(ahead),
            ]
        )

    def _is_yanked(self, key: str) -> bool:
        entry = self._entries.get(key)
        return entry is not None and bool(entry.yanked)


def _with_file(entry: Entry, package: PublishedPackage) -> PublishedPackage | None:
    """A version with one more file; None where it has it already."""
    held, (file,) = entry.package, package.files
    if entry.yanked:
        raise Conflict(f"package {package.key} was yanked: {entry.yanked}")
    if held.type != package.type:
        raise Conflict(f"package {package.key} is of type {held.type}, not {package.type}")
    same: PackageFile | None = next((f for f in held.files if f.attributes == file.attributes), None)
    if same is not None:
        if same.sha256 != file.sha256:
            who = json.dumps(file.attributes) if file.attributes else "all agents"
            raise Conflict(f"package {package.key} has other bytes for {who}; a version never changes, push a new one")
        if same == file or not file.signature:
            return None
        return held.model_copy(update={"files": [file if f is same else f for f in held.files]})
    if len(held.files) >= MAX_FILES:
        raise Conflict(f"package {package.key} has {MAX_FILES} files; there may be no more")
    return held.model_copy(update={"files": [*held.files, file]})


def _digest(package: PublishedPackage) -> str:
    return package.pin.rpartition("@")[2]

"""All documents in force, and the packages that they can name. Immutable: a change returns a new catalog."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.errors import NotFound
from relay.policy.kinds import KINDS
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment, PublishedPackage
from relay.policy.reading import AnyDocument
from relay.policy.role_binding import RoleBinding
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy
from relay.words import suggestion

AnyAssignment = ConfigAssignment | PackageAssignment


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """One version of a package, and its metadata. It is not a document, because it comes with files."""

    package: PublishedPackage
    created_ms: int
    created_by: str
    yanked: str = ""
    """Why it was yanked; empty if it was not."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All documents, by kind and key, and all versions of packages by NAME@VERSION."""

    templates: Mapping[str, ConfigTemplate] = field(default_factory=dict)
    assignments: Mapping[str, ConfigAssignment] = field(default_factory=dict)
    variables: Mapping[str, RegionVariables] = field(default_factory=dict)
    strategies: Mapping[str, RolloutStrategy] = field(default_factory=dict)
    package_assignments: Mapping[str, PackageAssignment] = field(default_factory=dict)
    signing_keys: Mapping[str, PackageSigningKey] = field(default_factory=dict)
    role_bindings: Mapping[str, RoleBinding] = field(default_factory=dict)
    packages: Mapping[str, PackageVersion] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, AnyDocument]:
        """The documents of one kind.

        Raises:
            NotFound: there is no such kind.
        """
        if kind not in KINDS:
            raise NotFound(f"there is no kind {kind}; the kinds are {', '.join(KINDS)}")
        documents: Mapping[str, AnyDocument] = getattr(self, KINDS[kind].field)
        return documents

    def put(self, *documents: AnyDocument) -> Catalog:
        """A catalog with these documents added, replacing those with the same names."""
        changed: dict[str, dict[str, AnyDocument]] = {}
        for document in documents:
            changed.setdefault(document.kind, dict(self.of(document.kind)))[document.key] = document
        return self._with(changed)

    def without(self, kind: str, key: str) -> Catalog:
        """A catalog without one document.

        Raises:
            KeyError: there is no such document.
        """
        documents = dict(self.of(kind))
        del documents[key]
        return self._with({kind: documents})

    def _with(self, changed: Mapping[str, Mapping[str, AnyDocument]]) -> Catalog:
        fields: dict[str, Any] = {KINDS[kind].field: documents for kind, documents in changed.items()}
        return dataclasses.replace(self, **fields)

    def put_packages(self, *versions: PackageVersion) -> Catalog:
        """A catalog with these package versions added or replaced."""
        return dataclasses.replace(self, packages={**self.packages, **{v.package.key: v for v in versions}})

    def without_package(self, key: str) -> Catalog:
        """A catalog without one package version."""
        return dataclasses.replace(self, packages={k: v for k, v in self.packages.items() if k != key})

    def package_files(self) -> dict[str, int]:
        """SHA-256 → size of every package file."""
        return {file.sha256: file.size for version in self.packages.values() for file in version.package.files}

    def all_assignments(self) -> Iterator[AnyAssignment]:
        """Assignments of both kinds. Names are unique across both, because rollouts are named after them."""
        yield from self.assignments.values()
        yield from self.package_assignments.values()

    @property
    def yanked(self) -> frozenset[str]:
        """NAME@VERSION of the yanked package versions."""
        return frozenset(key for key, version in self.packages.items() if version.yanked)


def find(catalog: Catalog, kind: str, key: str) -> AnyDocument:
    """One document.

    Raises:
        NotFound: there is no such document.
    """
    documents = catalog.of(kind)
    if key not in documents:
        raise NotFound(f"there is no {kind} {key}{suggestion(key, documents)}")
    return documents[key]

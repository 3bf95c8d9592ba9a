"""All documents in force, and the packages that they may name. A value: what changes it gives another one."""

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
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy
from relay.words import close_to

AnyAssignment = ConfigAssignment | PackageAssignment


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """One version of a package, and what is known of it beside its files. No document: it comes with bytes."""

    package: PublishedPackage
    created_ms: int
    created_by: str
    yanked: str = ""
    """Why nobody is to have it any more; empty where it was not yanked."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All documents, by kind and key, and all versions of packages by NAME@VERSION."""

    templates: Mapping[str, ConfigTemplate] = field(default_factory=dict)
    assignments: Mapping[str, ConfigAssignment] = field(default_factory=dict)
    variables: Mapping[str, RegionVariables] = field(default_factory=dict)
    strategies: Mapping[str, RolloutStrategy] = field(default_factory=dict)
    package_assignments: Mapping[str, PackageAssignment] = field(default_factory=dict)
    signing_keys: Mapping[str, PackageSigningKey] = field(default_factory=dict)
    packages: Mapping[str, PackageVersion] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, AnyDocument]:
        """The documents of one kind.

        Raises:
            NotFound: there is no such kind.
        """
        if kind not in KINDS:
            raise NotFound(f"there is no kind {kind}; there are {', '.join(KINDS)}")
        held: Mapping[str, AnyDocument] = getattr(self, KINDS[kind].field)
        return held

    def put(self, *documents: AnyDocument) -> Catalog:
        """With these documents, in the place of those of the same names."""
        changed: dict[str, dict[str, AnyDocument]] = {}
        for document in documents:
            changed.setdefault(document.kind, dict(self.of(document.kind)))[document.key] = document
        return self._with(changed)

    def without(self, kind: str, key: str) -> Catalog:
        """Without one document.

        Raises:
            KeyError: there is none of that name.
        """
        held = dict(self.of(kind))
        del held[key]
        return self._with({kind: held})

    def _with(self, changed: Mapping[str, Mapping[str, AnyDocument]]) -> Catalog:
        fields: dict[str, Any] = {KINDS[kind].field: held for kind, held in changed.items()}
        return dataclasses.replace(self, **fields)

    def put_packages(self, *versions: PackageVersion) -> Catalog:
        """With these versions of packages, in the place of themselves as they were."""
        return dataclasses.replace(self, packages={**self.packages, **{v.package.key: v for v in versions}})

    def without_package(self, key: str) -> Catalog:
        """Without one version of a package."""
        return dataclasses.replace(self, packages={k: v for k, v in self.packages.items() if k != key})

    def package_files(self) -> dict[str, int]:
        """SHA-256 → bytes of every file that some version of a package has."""
        return {file.sha256: file.size for version in self.packages.values() for file in version.package.files}

    def all_assignments(self) -> Iterator[AnyAssignment]:
        """Of both kinds. No two have one name: their rollouts are named after them."""
        yield from self.assignments.values()
        yield from self.package_assignments.values()

    @property
    def yanked(self) -> frozenset[str]:
        """NAME@VERSION of those that nobody is to have any more."""
        return frozenset(key for key, version in self.packages.items() if version.yanked)


def find(catalog: Catalog, kind: str, key: str) -> AnyDocument:
    """One document.

    Raises:
        NotFound: there is none of that kind and name.
    """
    held = catalog.of(kind)
    if key not in held:
        raise NotFound(f"there is no {kind} {key}{close_to(key, held)}")
    return held[key]

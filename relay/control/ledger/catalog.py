"""All documents in force, and the packages that they may name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from relay.errors import NotFound
from relay.policy.kinds import AnyDocument
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment, PublishedPackage
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy

AnyAssignment = ConfigAssignment | PackageAssignment


@dataclass(slots=True)
class Catalog:
    """All documents, by kind and key."""

    templates: dict[str, ConfigTemplate] = field(default_factory=dict)
    assignments: dict[str, ConfigAssignment] = field(default_factory=dict)
    variables: dict[str, RegionVariables] = field(default_factory=dict)
    strategies: dict[str, RolloutStrategy] = field(default_factory=dict)
    package_assignments: dict[str, PackageAssignment] = field(default_factory=dict)
    signing_keys: dict[str, PackageSigningKey] = field(default_factory=dict)
    packages: dict[str, PublishedPackage] = field(default_factory=dict)
    """NAME@VERSION → the version; no document: see `relay.control.packages`."""
    yanked: frozenset[str] = frozenset()
    """NAME@VERSION of those that nobody is to have any more."""

    def of(self, document_or_kind: AnyDocument | str) -> dict[str, Any]:
        """The documents of one kind."""
        kind = document_or_kind if isinstance(document_or_kind, str) else document_or_kind.kind
        by_kind: dict[str, dict[str, Any]] = {
            "ConfigTemplate": self.templates,
            "ConfigAssignment": self.assignments,
            "RegionVariables": self.variables,
            "RolloutStrategy": self.strategies,
            "PackageAssignment": self.package_assignments,
            "PackageSigningKey": self.signing_keys,
        }
        if kind not in by_kind:
            raise NotFound(f"there is no kind {kind}; there are {', '.join(by_kind)}")
        return by_kind[kind]

    def all_assignments(self) -> Iterator[AnyAssignment]:
        """Of both kinds. No two have one name: their rollouts are named after them."""
        yield from self.assignments.values()
        yield from self.package_assignments.values()

    def copy(self) -> Catalog:
        """A catalog that can be changed without changing this one."""
        copies: dict[str, Any] = {}
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            copies[field_.name] = dict(value) if isinstance(value, dict) else value
        return Catalog(**copies)

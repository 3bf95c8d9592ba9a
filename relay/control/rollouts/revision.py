"""Revisions: what an assignment asks for in all regions, and the contents that it pins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.policy.model import ConfigTemplate, RegionVariables, Selector
from relay.policy.packages import PublishedPackage
from relay.policy.published import CONFIG, PACKAGES, ConfigRevision, PackageRevision
from relay.policy.resources import Resource


@dataclass(frozen=True, slots=True)
class GlobalConfig:
    """A revision of a ConfigAssignment in all regions. Regions differ in the variables that it pins."""

    template: str
    template_digest: str
    values: dict[str, Any]
    variables: dict[str, str]
    """Region → NAME@DIGEST of its variables. Regions without variables are left out."""
    renderer: int
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    slot: str = ""
    observe_only: bool = False

    @property
    def kind(self) -> str:
        """The kind of the assignment."""
        return CONFIG

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package; a config has none."""
        return frozenset()

    @property
    def title(self) -> str:
        """A short title for users."""
        return self.template

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources it pins."""
        return frozenset(map(Resource.VARIABLES.name_of, self.variables.values()))

    def as_rendered_by(self, other: GlobalRevision) -> GlobalConfig:
        """Return the same revision with the renderer of another one."""
        return dataclasses.replace(self, renderer=other.renderer) if isinstance(other, GlobalConfig) else self

    def for_region(self, region: str) -> ConfigRevision:
        """The revision as published to a region."""
        return ConfigRevision(
            template=self.template,
            template_digest=self.template_digest,
            values=self.values,
            variables=self.variables.get(region, ""),
            renderer=self.renderer,
            selector=self.selector,
            priority=self.priority,
            slot=self.slot,
        )

    def plain(self) -> dict[str, Any]:
        """Plain values for the database."""
        value = {name: getattr(self, name) for name in self.__slots__}
        return {**value, "selector": self.selector.model_dump(exclude_unset=True)}


@dataclass(frozen=True, slots=True)
class GlobalPackages:
    """A revision of a PackageAssignment; the same in all regions."""

    packages: tuple[str, ...]
    """NAME@VERSION@DIGEST of each package."""
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    prefetch: bool = False

    @property
    def kind(self) -> str:
        """The kind of the assignment."""
        return PACKAGES

    @property
    def title(self) -> str:
        """A short title for users."""
        return " ".join(sorted(self.versions))

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package."""
        return frozenset(pin.rpartition("@")[0] for pin in self.packages)

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources it pins."""
        return frozenset(map(Resource.PACKAGE.name_of, self.packages))

    @property
    def slot(self) -> str:
        """Always empty: an agent has one set of packages."""
        return ""

    @property
    def observe_only(self) -> bool:
        """Always False: packages cannot be observed only."""
        return False

    def as_rendered_by(self, _: GlobalRevision) -> GlobalPackages:
        """Return itself: packages are not rendered."""
        return self

    def for_region(self, region: str) -> PackageRevision:
        """The revision as published to a region."""
        return PackageRevision(packages=list(self.packages), selector=self.selector, priority=self.priority)

    def plain(self) -> dict[str, Any]:
        """Plain values for the database."""
        return {
            "packages": list(self.packages),
            "selector": self.selector.model_dump(exclude_unset=True),
            "priority": self.priority,
            "prefetch": self.prefetch,
        }


GlobalRevision = GlobalConfig | GlobalPackages


def revision_from_plain(value: Mapping[str, Any] | None) -> GlobalRevision | None:
    """The inverse of `plain`, for both kinds."""
    if value is None:
        return None
    selector = Selector.model_validate(value["selector"])
    if "packages" in value:
        return GlobalPackages(**{**value, "selector": selector, "packages": tuple(value["packages"])})
    return GlobalConfig(**{**value, "selector": selector})


@dataclass(frozen=True, slots=True)
class Pinned:
    """The contents that revisions pin. Regions have them too, and build from them what agents get."""

    templates: Mapping[str, ConfigTemplate]
    """NAME@VERSION → the template."""
    contents: Mapping[str, bytes]
    """Resource name → payload of every pinned RegionVariables and Package, including old ones."""

    def inputs(self, revision: GlobalConfig, region: str) -> tuple[ConfigTemplate, Mapping[str, Any]]:
        """Return the template of a revision, and the values of the variables it pins for a region.

        Raises:
            KeyError: the template is gone.
        """
        pin = revision.variables.get(region, "")
        payload = self.contents.get(Resource.VARIABLES.name_of(pin)) if pin else None
        values = RegionVariables.model_validate_json(payload).spec.values if payload else {}
        return self.templates[revision.template], values

    def packages(self, revision: GlobalPackages) -> list[PublishedPackage]:
        """The package versions that a revision pins, without those that are gone."""
        payloads = (self.contents.get(name) for name in sorted(revision.pins))
        return [PublishedPackage.model_validate_json(payload) for payload in payloads if payload is not None]

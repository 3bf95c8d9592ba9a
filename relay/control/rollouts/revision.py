"""What an assignment asks for, in all regions at once, and the contents that this pins."""

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
    """One state of a ConfigAssignment in all regions: regions differ in the variables that it pins."""

    template: str
    template_digest: str
    values: dict[str, Any]
    variables: dict[str, str]
    """Region → NAME@DIGEST of its variables; a region that is missing has none."""
    renderer: int
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    slot: str = ""
    observe_only: bool = False

    @property
    def kind(self) -> str:
        """Of the assignment."""
        return CONFIG

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package: none."""
        return frozenset()

    @property
    def title(self) -> str:
        """For people."""
        return self.template

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources whose contents it needs."""
        return frozenset(map(Resource.VARIABLES.name_of, self.variables.values()))

    def as_rendered_by(self, other: GlobalRevision) -> GlobalConfig:
        """The same with the renderer of another revision."""
        return dataclasses.replace(self, renderer=other.renderer) if isinstance(other, GlobalConfig) else self

    def for_region(self, region: str) -> ConfigRevision:
        """As one region gets it."""
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
        """As plain values."""
        value = {name: getattr(self, name) for name in self.__slots__}
        return {**value, "selector": self.selector.model_dump(exclude_unset=True)}


@dataclass(frozen=True, slots=True)
class GlobalPackages:
    """One state of a PackageAssignment; the same in all regions."""

    packages: tuple[str, ...]
    """NAME@VERSION@DIGEST of each package."""
    selector: Selector = field(default_factory=Selector)
    priority: int = 0
    prefetch: bool = False

    @property
    def kind(self) -> str:
        """Of the assignment."""
        return PACKAGES

    @property
    def title(self) -> str:
        """For people."""
        return " ".join(sorted(self.versions))

    @property
    def versions(self) -> frozenset[str]:
        """NAME@VERSION of each package."""
        return frozenset(pin.rpartition("@")[0] for pin in self.packages)

    @property
    def pins(self) -> frozenset[str]:
        """Names of the resources whose contents it needs."""
        return frozenset(map(Resource.PACKAGE.name_of, self.packages))

    @property
    def slot(self) -> str:
        """An agent has one set of packages."""
        return ""

    @property
    def observe_only(self) -> bool:
        """Packages are offered, or not assigned."""
        return False

    def as_rendered_by(self, _: GlobalRevision) -> GlobalPackages:
        """The same: nothing of it is rendered."""
        return self

    def for_region(self, region: str) -> PackageRevision:
        """As one region gets it."""
        return PackageRevision(packages=list(self.packages), selector=self.selector, priority=self.priority)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "packages": list(self.packages),
            "selector": self.selector.model_dump(exclude_unset=True),
            "priority": self.priority,
            "prefetch": self.prefetch,
        }


GlobalRevision = GlobalConfig | GlobalPackages


def revision_from_plain(value: Mapping[str, Any] | None) -> GlobalRevision | None:
    """Undo `plain` of a revision of either kind."""
    if value is None:
        return None
    selector = Selector.model_validate(value["selector"])
    if "packages" in value:
        return GlobalPackages(**{**value, "selector": selector, "packages": tuple(value["packages"])})
    return GlobalConfig(**{**value, "selector": selector})


@dataclass(frozen=True, slots=True)
class Pinned:
    """The contents that revisions pin: regions hold them, and what agents get is made of them."""

    templates: Mapping[str, ConfigTemplate]
    """NAME@VERSION → the template."""
    contents: Mapping[str, bytes]
    """Resource name → payload of every pinned RegionVariables and Package, old ones too."""

    def inputs(self, revision: GlobalConfig, region: str) -> tuple[ConfigTemplate, Mapping[str, Any]]:
        """The template of a revision, and the values of a region's variables that it pins.

        Raises:
            KeyError: the template is gone.
        """
        pin = revision.variables.get(region, "")
        payload = self.contents.get(Resource.VARIABLES.name_of(pin)) if pin else None
        values = RegionVariables.model_validate_json(payload).spec.values if payload else {}
        return self.templates[revision.template], values

    def packages(self, revision: GlobalPackages) -> list[PublishedPackage]:
        """The versions that a revision pins, those that are still here."""
        payloads = (self.contents.get(name) for name in sorted(revision.pins))
        return [PublishedPackage.model_validate_json(payload) for payload in payloads if payload is not None]

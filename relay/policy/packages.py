"""Packages: what a version is made of, who gets which set, and which file of a version an agent takes.

A version may have several files, told apart by attributes of the agents that they are for (`os.type`, `host.arch`). What
nodes get of a version is a `PublishedPackage`: its bytes are fetched by SHA-256 when somebody needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy.model import Approval, Metadata, Model, Name, Scalar, Selector, Version, VersionRef

MAX_FILES = 64
"""Of one version."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PackageType = Literal["top-level", "addon"]


def _printable(value: Scalar) -> Scalar:
    if isinstance(value, str) and (len(value) > _MAX_VALUE_CHARS or not value.isprintable()):
        raise ValueError(f"a value has at most {_MAX_VALUE_CHARS} characters, all of them printable")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    return value


_MAX_VALUE_CHARS = 256
Attributes = dict[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")], Annotated[Scalar, AfterValidator(_printable)]
]


class PackageFile(Model):
    """One file of a version."""

    sha256: Sha256
    size: int = Field(ge=0)
    attributes: Attributes = Field(default_factory=dict, max_length=16)
    """Of agents that it is for; empty for all that no other file is for."""
    signature: str = Field(default="", max_length=4096, pattern=r"^([0-9a-f]{2})*$")
    """Hex; detached, over `signed_statement`; see `relay.policy.signatures`."""
    key: str = ""
    """Name of the key that it was made with."""
    expires_ms: int = Field(default=0, ge=0)
    """When the signature ends, Unix milliseconds; 0 for never."""

    @cached_property
    def selector(self) -> Selector:
        """Whom it is for."""
        return Selector(attributes=self.attributes)


class PublishedPackage(Model):
    """One version of a package, as nodes get it."""

    name: Name
    version: Version
    type: PackageType = "top-level"
    files: list[PackageFile] = Field(min_length=1, max_length=MAX_FILES)

    @model_validator(mode="after")
    def _distinct(self) -> PublishedPackage:
        if len({canonical_json(f.attributes) for f in self.files}) < len(self.files):
            raise ValueError("two files match the same agents")
        return self

    @property
    def key(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def pin(self) -> str:
        """NAME@VERSION@DIGEST: one state of it, for a version may gain files."""
        return f"{self.key}@{sha256(canonical_json(self.model_dump())).hex()[:16]}"

    @property
    def preferred(self) -> list[PackageFile]:
        """Its files, those for the fewest agents first."""
        return sorted(self.files, key=lambda f: (-len(f.attributes), f.sha256))


class PackageAssignmentSpec(Model):
    """What a package assignment says."""

    packages: list[VersionRef] = Field(min_length=1, max_length=100)
    """The whole set: an agent removes what it has beyond it."""
    target_selector: Selector = Selector()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    strategy: Name | None = None
    """The RolloutStrategy by which changes go out; None: as the settings say, else at once."""
    approval: Approval | None = None
    """Overrides what the settings say of approvals."""
    prefetch: bool = False
    """A rollout begins when every region that it is for has fetched the files."""

    @field_validator("packages")
    @classmethod
    def _named_once(cls, packages: list[VersionRef]) -> list[VersionRef]:
        names = [p.name for p in packages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"package {name} is listed twice")
        return packages


class PackageAssignment(Model):
    """Which agents get which packages. The one of the highest priority wins whole: sets are not merged."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["PackageAssignment"]
    metadata: Metadata
    spec: PackageAssignmentSpec

    @property
    def key(self) -> str:
        """What it is stored under."""
        return self.metadata.name


@dataclass(frozen=True, slots=True, eq=False)
class PackageSet:
    """The files that agents of one kind take of a set of versions."""

    files: tuple[tuple[PublishedPackage, PackageFile], ...]
    """By name of the package."""
    content_hash: bytes


def pick(packages: Sequence[PublishedPackage], is_for: Callable[[PackageFile], bool]) -> PackageSet | None:
    """The files for an agent; None where a version has none for it: then it is offered nothing of the set.

    Args:
        is_for: whether a file's attributes match the agent.
    """
    files = []
    for package in sorted(packages, key=lambda p: p.name):
        file = next((f for f in package.preferred if is_for(f)), None)
        if file is None:
            return None
        files.append((package, file))
    return PackageSet(tuple(files), sha256(b"".join(package_hash(p, f) for p, f in files)))


def package_hash(package: PublishedPackage, file: PackageFile) -> bytes:
    """PackageAvailable.hash: of all that an agent is told of a package."""
    told = [package.name, package.version, package.type, file.sha256, file.signature]
    return sha256(canonical_json(told))


def all_packages_hash(chosen: PackageSet, retry: int = 0, failed: int = 0) -> bytes:
    """PackagesAvailable.all_packages_hash: of a set, the agent's retry generation, and how much else it failed at.

    An agent that failed half way must look at the set that it had once more: under the old hash opamp-go takes itself to be
    up to date.
    """
    return sha256(chosen.content_hash + retry.to_bytes(4, "big") + failed.to_bytes(4, "big"))

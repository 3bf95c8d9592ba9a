"""Packages: the files of a version, the assignment of package sets, and the choice of a file for an agent.

A version may have several files for agents with different attributes (`os.type`, `host.arch`). Nodes get a version as a
`PublishedPackage`; its files are fetched by SHA-256 when they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from relay.documents import Scalar, canonical_json
from relay.ids import sha256
from relay.policy.model import Approval, Metadata, Model, Name, Selector, Version, VersionRef

MAX_FILES = 64
"""Files of one version."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PackageType = Literal["top-level", "addon"]


def _printable(value: Scalar) -> Scalar:
    if isinstance(value, str) and (len(value) > _MAX_VALUE_CHARS or not value.isprintable()):
        raise ValueError(f"a value must have at most {_MAX_VALUE_CHARS} characters, all printable")
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
    """Attributes of the agents that the file is for; empty for those that no other file matches."""
    signature: str = Field(default="", max_length=4096, pattern=r"^([0-9a-f]{2})*$")
    """Detached signature in hex; see `relay.policy.signatures`."""
    key: str = ""
    """Name of the signing key."""
    expires_ms: int = Field(default=0, ge=0)
    """When the signature expires, Unix milliseconds; 0 for never."""

    @cached_property
    def selector(self) -> Selector:
        """Matches the agents that the file is for."""
        return Selector(attributes=self.attributes)


class PublishedPackage(Model):
    """One version of a package, as sent to nodes."""

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
        """NAME@VERSION@DIGEST. The digest identifies the state: files may be added to a version."""
        return f"{self.key}@{sha256(canonical_json(self.model_dump())).hex()[:16]}"

    @property
    def preferred(self) -> list[PackageFile]:
        """The files, most specific first."""
        return sorted(self.files, key=lambda f: (-len(f.attributes), f.sha256))


class PackageAssignmentSpec(Model):
    """The body of a package assignment."""

    packages: list[VersionRef] = Field(min_length=1, max_length=100)
    """The complete set: an agent removes all other packages."""
    target_selector: Selector = Selector()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    strategy: Name | None = None
    """The RolloutStrategy for changes; None: as in the settings, else at once."""
    approval: Approval | None = None
    """Overrides the approval settings."""
    prefetch: bool = False
    """A rollout waits until all of its regions have fetched the files."""

    @field_validator("packages")
    @classmethod
    def _named_once(cls, packages: list[VersionRef]) -> list[VersionRef]:
        names = [p.name for p in packages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"package {name} is listed twice")
        return packages


class PackageAssignment(Model):
    """Assigns a set of packages to agents. The highest priority wins: sets are not merged."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["PackageAssignment"]
    metadata: Metadata
    spec: PackageAssignmentSpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name


@dataclass(frozen=True, slots=True, eq=False)
class PackageSet:
    """A set of packages, with the file of each that suits an agent."""

    files: tuple[tuple[PublishedPackage, PackageFile], ...]
    """Ordered by package name."""
    content_hash: bytes


def pick(packages: Sequence[PublishedPackage], is_for: Callable[[PackageFile], bool]) -> PackageSet | None:
    """Pick the files for an agent; None if any version has no file for it: then the whole set is not offered.

    Args:
        is_for: tells whether a file's attributes match the agent.
    """
    files = []
    for package in sorted(packages, key=lambda p: p.name):
        file = next((f for f in package.preferred if is_for(f)), None)
        if file is None:
            return None
        files.append((package, file))
    return PackageSet(tuple(files), sha256(b"".join(package_hash(p, f) for p, f in files)))


def package_hash(package: PublishedPackage, file: PackageFile) -> bytes:
    """PackageAvailable.hash: covers everything that an agent is sent about a package."""
    fields = [package.name, package.version, package.type, file.sha256, file.signature]
    return sha256(canonical_json(fields))


def all_packages_hash(chosen: PackageSet, retry: int = 0, failed: int = 0) -> bytes:
    """PackagesAvailable.all_packages_hash: covers a set, the agent's retry generation, and its number of failures.

    An agent that failed halfway must check its previous set again. With that set's old hash, opamp-go would assume that it
    is up to date.
    """
    return sha256(chosen.content_hash + retry.to_bytes(4, "big") + failed.to_bytes(4, "big"))

"""The published form of assignments: revisions, which pin their inputs by digest, and rollouts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from relay.policy.model import Model, Name, Selector
from relay.policy.packages import Sha256
from relay.policy.rollout import RolloutName
from relay.policy.strategy import LocalGuard

CONFIG, PACKAGES = "ConfigAssignment", "PackageAssignment"
"""The kinds of assignments."""


class ConfigRevision(Model):
    """One state of a config assignment. It pins its inputs by digest."""

    template: str
    """NAME@VERSION."""
    template_digest: str
    values: dict[str, object]
    variables: str = ""
    """REGION@DIGEST of the region's variables; empty for none."""
    renderer: int
    selector: Selector = Selector()
    """Part of the revision, so that a change of the selector is staged like any other."""
    priority: int = 0
    slot: str = ""


class PackageRevision(Model):
    """One state of a package assignment. It pins its packages by digest."""

    packages: list[str] = Field(min_length=1)
    """NAME@VERSION@DIGEST."""
    selector: Selector = Selector()
    priority: int = 0

    @property
    def slot(self) -> str:
        """Always empty: an agent has only one set of packages."""
        return ""


def _revision_kind(value: Any) -> str:
    has_packages = "packages" in value if isinstance(value, dict) else isinstance(value, PackageRevision)
    return PACKAGES if has_packages else CONFIG


Revision = ConfigRevision | PackageRevision
# A discriminated union, so that errors are reported for the right member only.
_AnyRevision = Annotated[
    Annotated[ConfigRevision, Tag(CONFIG)] | Annotated[PackageRevision, Tag(PACKAGES)],
    Discriminator(_revision_kind),
]


class PublishedRollout(Model):
    """A rollout in progress."""

    id: RolloutName
    candidate: _AnyRevision
    threshold: int = Field(ge=0)
    """Agents with a bucket below the threshold are on the candidate; see `relay.policy.rollout`."""
    selector: Selector = Selector()
    """The strategy's selector: agents that it does not match are not on the candidate."""
    local_guard: LocalGuard | None = None
    stage: str = ""
    """Name of the current stage, for people."""
    candidate_ttl_s: float | None = None
    """A node whose policy is older than this puts no further agents on the candidate."""


class Published(Model):
    """An assignment as sent to nodes."""

    name: Name
    stable: _AnyRevision | None
    rollout: PublishedRollout | None
    layers: list[PublishedRollout] = Field(default_factory=list)
    """Superseded rollouts, newest first: their agents keep those candidates until the newer rollout reaches them."""
    retry: int = 0
    """The retry generation. Failures of earlier generations are forgiven."""
    earlier: list[_AnyRevision] = Field(default_factory=list)
    """Former stable revisions, newest first: for agents that cannot apply a later one."""

    @property
    def revisions(self) -> list[Revision]:
        """All revisions, candidates first."""
        changes = [*([self.rollout] if self.rollout else []), *self.layers]
        return [*(c.candidate for c in changes), *([self.stable] if self.stable else []), *self.earlier]


class YankedVersions(Model):
    """Package versions that agents must no longer get."""

    versions: list[str]
    """NAME@VERSION."""


class PackageKeys(Model):
    """The keys for a region's packages."""

    download: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=10)
    """Hex. Download addresses are signed with the first key and accepted with any."""
    signing: dict[Name, str]
    """Name → public key in PEM."""


class Prefetch(Model):
    """Files to fetch before they are needed."""

    sha256: list[Sha256]

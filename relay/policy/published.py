"""What a control plane publishes of an assignment: its revisions, which pin their inputs by digest, and its rollout."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from relay.policy.model import Model, Name, Selector
from relay.policy.packages import Sha256
from relay.policy.rollout import RolloutName
from relay.policy.strategy import LocalGuard

CONFIG, PACKAGES = "ConfigAssignment", "PackageAssignment"
"""Kinds of assignments."""


class ConfigRevision(Model):
    """One state of a config assignment's content, by the digests of all its inputs."""

    template: str
    """NAME@VERSION."""
    template_digest: str
    values: dict[str, object]
    variables: str = ""
    """REGION@DIGEST of the region's variables; empty for none."""
    renderer: int
    selector: Selector = Selector()
    """Whom it is for: a change of the selector goes out by stages like every other."""
    priority: int = 0
    slot: str = ""


class PackageRevision(Model):
    """One state of a package assignment's content."""

    packages: list[str] = Field(min_length=1)
    """NAME@VERSION@DIGEST."""
    selector: Selector = Selector()
    priority: int = 0

    @property
    def slot(self) -> str:
        """An agent has one set of packages."""
        return ""


def _revision_kind(value: Any) -> str:
    is_of_packages = "packages" in value if isinstance(value, dict) else isinstance(value, PackageRevision)
    return PACKAGES if is_of_packages else CONFIG


Revision = ConfigRevision | PackageRevision
# Told apart by what they hold, so that what is wrong with one is not looked for in the other.
_AnyRevision = Annotated[
    Annotated[ConfigRevision, Tag(CONFIG)] | Annotated[PackageRevision, Tag(PACKAGES)],
    Discriminator(_revision_kind),
]


class PublishedRollout(Model):
    """A change under way."""

    id: RolloutName
    candidate: _AnyRevision
    threshold: int = Field(ge=0)
    """Agents whose bucket is below it are on the candidate; see `relay.policy.rollout`."""
    selector: Selector = Selector()
    """The strategy's: agents that it does not match are not on the candidate."""
    local_guard: LocalGuard | None = None
    stage: str = ""
    """Its name, for people."""
    candidate_ttl_s: float | None = None
    """A node that heard nothing for so long puts no further agent on the candidate."""


class Published(Model):
    """An assignment as nodes get it."""

    name: Name
    stable: _AnyRevision | None
    rollout: PublishedRollout | None
    layers: list[PublishedRollout] = Field(default_factory=list)
    """Rollouts that newer ones superseded, the newest first: their agents keep what they have until their turn comes."""
    retry: int = 0
    """Failures of an earlier retry generation are forgiven."""
    earlier: list[_AnyRevision] = Field(default_factory=list)
    """What was stable before, the newest first: for agents that cannot apply what came after it."""

    @property
    def revisions(self) -> list[Revision]:
        """All of them."""
        changes = [*([self.rollout] if self.rollout else []), *self.layers]
        return [*(c.candidate for c in changes), *([self.stable] if self.stable else []), *self.earlier]


class YankedVersions(Model):
    """What nobody is to have any more."""

    versions: list[str]
    """NAME@VERSION."""


class PackageKeys(Model):
    """Keys of a region's packages."""

    download: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=10)
    """Hex; addresses are made with the first, and good if made with any."""
    signing: dict[Name, str]
    """Name → public key, PEM."""


class Prefetch(Model):
    """Files to be fetched before anybody needs them."""

    sha256: list[Sha256]

"""Resources: what a control plane publishes, as canonical JSON under names of its own. The one table of these names.

- `ConfigTemplate/NAME@VERSION`: the document.
- `RegionVariables/REGION@DIGEST`: the document; old contents stay under their own names while a revision pins them.
- `Package/NAME@VERSION@DIGEST`: a `PublishedPackage`, likewise.
- `ConfigAssignment/NAME`, `PackageAssignment/NAME`: a `Published` assignment.
- `Yanked/packages`: versions that nobody is to have any more.
- `Keys/packages`: what the region's nodes sign addresses with, and whose signatures of packages are good.
- `Prefetch/packages`: SHA-256 of files to be fetched before anybody needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy.model import ConfigTemplate, RegionVariables
from relay.policy.packages import PublishedPackage
from relay.policy.published import CONFIG, PACKAGES, PackageKeys, Prefetch, Published, YankedVersions

_DIGITS = 16


class Resource(StrEnum):
    """Kinds of resources."""

    TEMPLATE = "ConfigTemplate"
    VARIABLES = "RegionVariables"
    PACKAGE = "Package"
    CONFIG_ASSIGNMENT = CONFIG
    PACKAGE_ASSIGNMENT = PACKAGES
    YANKED = "Yanked"
    KEYS = "Keys"
    PREFETCH = "Prefetch"

    def name_of(self, key: str) -> str:
        """The name of the one with this key."""
        return f"{self.value}/{key}"


YANKED, KEYS, PREFETCH = (kind.name_of("packages") for kind in (Resource.YANKED, Resource.KEYS, Resource.PREFETCH))


def split(name: str) -> tuple[str, str]:
    """(kind, key) of a name; of a later version the kind may be none that is known here."""
    kind, _, key = name.partition("/")
    return kind, key


def is_assignment(name: str) -> bool:
    """Whether a resource is an assignment."""
    return split(name)[0] in (CONFIG, PACKAGES)


def is_named_for(name: str, payload: bytes) -> bool:
    """Whether a payload is the one of its name; the name of what is of a region ends with a digest of it."""
    kind, key = split(name)
    return kind != Resource.VARIABLES or sha256(payload).hex().startswith(key.rpartition("@")[2])


def template_resource(template: ConfigTemplate) -> tuple[str, bytes]:
    """(resource name, payload) of a template."""
    # Without the form that it has not: what nodes of before know must not change its digest.
    other = "text" if template.spec.text is None else "config"
    return Resource.TEMPLATE.name_of(template.key), canonical_json(
        template.model_dump(exclude={"spec": {other}, "metadata": {"labels"}})
    )


def variables_resource(variables: RegionVariables) -> tuple[str, bytes]:
    """(resource name, payload) of a region's variables."""
    payload = canonical_json(variables.model_dump(exclude={"metadata": {"labels"}}))
    return Resource.VARIABLES.name_of(f"{variables.key}@{sha256(payload).hex()[:_DIGITS]}"), payload


def package_resource(package: PublishedPackage) -> tuple[str, bytes]:
    """(resource name, payload) of a version of a package."""
    return Resource.PACKAGE.name_of(package.pin), canonical_json(package.model_dump())


def yanked_resource(versions: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of what was yanked."""
    return YANKED, canonical_json(YankedVersions(versions=sorted(set(versions))).model_dump())


def keys_resource(download: Iterable[bytes], signing: Mapping[str, str]) -> tuple[str, bytes]:
    """(resource name, payload) of a region's keys."""
    keys = PackageKeys(download=[key.hex() for key in download], signing=dict(signing))
    return KEYS, canonical_json(keys.model_dump())


def prefetch_resource(files: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of what is to be fetched ahead."""
    return PREFETCH, canonical_json(Prefetch(sha256=sorted(files)).model_dump())


def assignment_resource(kind: str, published: Published) -> tuple[str, bytes]:
    """(resource name, payload) of an assignment."""
    # A node of a version that knows no earlier revisions takes what has none.
    without = None if published.earlier else {"earlier"}
    return Resource(kind).name_of(published.name), canonical_json(published.model_dump(exclude=without))

"""Resources: what a control plane publishes, as canonical JSON under these names.

- `ConfigTemplate/NAME@VERSION`: the document.
- `RegionVariables/REGION@DIGEST`: the document; old contents keep their names while a revision pins them.
- `Package/NAME@VERSION@DIGEST`: a `PublishedPackage`, likewise.
- `ConfigAssignment/NAME`, `PackageAssignment/NAME`: a `Published` assignment.
- `Yanked/packages`: versions that agents must no longer get.
- `Keys/packages`: keys for signing download addresses, and for verifying packages' signatures.
- `Prefetch/packages`: SHA-256 of files to fetch before they are needed.
- `ApiKeys/…`, `Revocations/agents`, `Access/readers`: who may connect; see `relay.policy.access`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy.model import ConfigTemplate, RegionVariables
from relay.policy.packages import PublishedPackage
from relay.policy.published import CONFIG, PACKAGES, PackageKeys, Prefetch, Published, YankedVersions

_DIGEST_CHARS = 16


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
        """The name of the resource with this key."""
        return f"{self.value}/{key}"


YANKED, KEYS, PREFETCH = (kind.name_of("packages") for kind in (Resource.YANKED, Resource.KEYS, Resource.PREFETCH))


def split(name: str) -> tuple[str, str]:
    """(kind, key) of a name. The kind may be unknown here, if it is from a later version."""
    kind, _, key = name.partition("/")
    return kind, key


def is_assignment(name: str) -> bool:
    """Whether a resource is an assignment."""
    return split(name)[0] in (CONFIG, PACKAGES)


def is_named_for(name: str, payload: bytes) -> bool:
    """Whether a payload belongs to its name: the names of region variables end with a digest of the payload."""
    kind, key = split(name)
    return kind != Resource.VARIABLES or sha256(payload).hex().startswith(key.rpartition("@")[2])


def template_resource(template: ConfigTemplate) -> tuple[str, bytes]:
    """(resource name, payload) of a template."""
    # Omit the unused one of `text` and `config`, so that templates keep the digest that older nodes know.
    unused = "text" if template.spec.text is None else "config"
    return Resource.TEMPLATE.name_of(template.key), canonical_json(
        template.model_dump(exclude={"spec": {unused}, "metadata": {"labels"}})
    )


def variables_resource(variables: RegionVariables) -> tuple[str, bytes]:
    """(resource name, payload) of a region's variables."""
    payload = canonical_json(variables.model_dump(exclude={"metadata": {"labels"}}))
    return Resource.VARIABLES.name_of(f"{variables.key}@{sha256(payload).hex()[:_DIGEST_CHARS]}"), payload


def package_resource(package: PublishedPackage) -> tuple[str, bytes]:
    """(resource name, payload) of a version of a package."""
    return Resource.PACKAGE.name_of(package.pin), canonical_json(package.model_dump())


def yanked_resource(versions: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of the yanked versions."""
    return YANKED, canonical_json(YankedVersions(versions=sorted(set(versions))).model_dump())


def keys_resource(download: Iterable[bytes], signing: Mapping[str, str]) -> tuple[str, bytes]:
    """(resource name, payload) of a region's keys."""
    keys = PackageKeys(download=[key.hex() for key in download], signing=dict(signing))
    return KEYS, canonical_json(keys.model_dump())


def prefetch_resource(files: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of the files to prefetch."""
    return PREFETCH, canonical_json(Prefetch(sha256=sorted(files)).model_dump())


def assignment_resource(kind: str, published: Published) -> tuple[str, bytes]:
    """(resource name, payload) of an assignment."""
    # Omit the field if it is empty: older nodes do not know it.
    excluded = None if published.earlier else {"earlier"}
    return Resource(kind).name_of(published.name), canonical_json(published.model_dump(exclude=excluded))

"""What a node holds of policy: published resources, checked and compiled, each good or refused by itself.

The control plane publishes these kinds, as canonical JSON under names of its own:

- `ConfigTemplate/NAME@VERSION`: the document.
- `RegionVariables/REGION@DIGEST`: the document; old contents stay under their own names while a revision pins them.
- `Package/NAME@VERSION@DIGEST`: a `PublishedPackage`, likewise.
- `ConfigAssignment/NAME`, `PackageAssignment/NAME`: a `Published` assignment: its revisions, which pin their inputs.
- `Yanked/packages`: versions that nobody is to have any more.
- `Keys/packages`: what the region's nodes sign addresses with, and whose signatures of packages are good.
- `Prefetch/packages`: SHA-256 of files to be fetched before anybody needs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError

from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy import template as templates
from relay.policy.model import ConfigTemplate, Model, Name, RegionVariables, Selector
from relay.policy.packages import PublishedPackage, Sha256
from relay.policy.rollout import EVERYONE, RolloutName
from relay.policy.strategy import LocalGuard
from relay.policy.template import RENDERER, Resolved

CONFIG, PACKAGES = "ConfigAssignment", "PackageAssignment"
_YANKED, _KEYS, _PREFETCH = "Yanked/packages", "Keys/packages", "Prefetch/packages"
RENDERERS = frozenset({RENDERER})


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


class Rollout(Model):
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
    rollout: Rollout | None
    layers: list[Rollout] = Field(default_factory=list)
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


@dataclass(frozen=True, slots=True, eq=False)
class ConfigContent:
    """A revision made ready: what one slot will hold."""

    revision: ConfigRevision
    template: ConfigTemplate
    resolved: Resolved
    content_hash: bytes

    def render(self) -> bytes:
        """The bytes for the slot; the owner keeps them."""
        return templates.render(self.template, self.resolved)


@dataclass(frozen=True, slots=True, eq=False)
class PackageContent:
    """A revision made ready: versions of packages, of which each agent takes the files that are for it."""

    revision: PackageRevision
    packages: tuple[PublishedPackage, ...]


Content = ConfigContent | PackageContent


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """A revision of which this region can make nothing. It says all the same whom the assignment is for."""

    revision: Revision
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """A published assignment made ready."""

    kind: str
    """CONFIG or PACKAGES."""
    published: Published
    stable: Content | None
    branches: tuple[tuple[Rollout, Content], ...]
    """The rollout and its candidate, then those of superseded ones: the first that an agent is on counts."""
    inputs: frozenset[str]
    """Names of the resources that it was made of, its own included."""
    earlier: tuple[Content, ...] = ()
    """What was stable before, the newest first."""
    refused: Refused | None = None
    """What agents should have and cannot be given here; all else is the last good form."""

    @property
    def contents(self) -> list[Content]:
        """All that agents may have of it: the candidates first, what was stable before last."""
        stable = [self.stable] if self.stable is not None else []
        return [*(content for _, content in self.branches), *stable, *self.earlier]

    @property
    def revisions(self) -> list[Revision]:
        """All that say whom it is for."""
        return [*([self.refused.revision] if self.refused is not None else []), *(c.revision for c in self.contents)]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a region serves by, at one manifest."""

    assignments: tuple[Assignment, ...] = ()
    """By name."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Resource name → why it is not in force (its last good form may be)."""
    yanked: frozenset[str] = frozenset()
    """NAME@VERSION of packages that nobody is to have any more."""
    download_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """What addresses of packages are made with: the first, and good are all."""
    signing_keys: Mapping[str, str] = field(default_factory=dict)
    """Name → public key of whose signatures of packages are good, PEM."""
    prefetch: frozenset[str] = frozenset()
    """SHA-256 of files to be fetched before anybody needs them."""
    salvaged: frozenset[str] = frozenset()
    """Of `rejected`: assignments of which what is in force was made of the form that was refused."""

    @property
    def needed(self) -> frozenset[str]:
        """Resources that must be kept, even where the manifest no longer names them."""
        return frozenset().union(*(a.inputs for a in self.assignments))


def template_resource(template: ConfigTemplate) -> tuple[str, bytes]:
    """(resource name, payload) of a template."""
    # Without the form that it has not: what nodes of before know must not change its digest.
    other = "text" if template.spec.text is None else "config"
    return f"ConfigTemplate/{template.key}", canonical_json(
        template.model_dump(exclude={"spec": {other}, "metadata": {"labels"}})
    )


def variables_resource(variables: RegionVariables) -> tuple[str, bytes]:
    """(resource name, payload) of a region's variables."""
    payload = canonical_json(variables.model_dump(exclude={"metadata": {"labels"}}))
    return f"RegionVariables/{variables.key}@{sha256(payload).hex()[:16]}", payload


def package_resource(package: PublishedPackage) -> tuple[str, bytes]:
    """(resource name, payload) of a version of a package."""
    return f"Package/{package.pin}", canonical_json(package.model_dump())


def yanked_resource(versions: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of what was yanked."""
    return _YANKED, canonical_json(YankedVersions(versions=sorted(set(versions))).model_dump())


def keys_resource(download: Iterable[bytes], signing: Mapping[str, str]) -> tuple[str, bytes]:
    """(resource name, payload) of a region's keys."""
    keys = PackageKeys(download=[key.hex() for key in download], signing=dict(signing))
    return _KEYS, canonical_json(keys.model_dump())


def prefetch_resource(files: Iterable[str]) -> tuple[str, bytes]:
    """(resource name, payload) of what is to be fetched ahead."""
    return _PREFETCH, canonical_json(Prefetch(sha256=sorted(files)).model_dump())


def assignment_resource(kind: str, published: Published) -> tuple[str, bytes]:
    """(resource name, payload) of an assignment."""
    # A node of a version that knows no earlier revisions takes what has none.
    without = None if published.earlier else {"earlier"}
    return f"{kind}/{published.name}", canonical_json(published.model_dump(exclude=without))


def build(resources: Mapping[str, bytes], previous: Snapshot | None = None) -> Snapshot:
    """Compile resources; what is bad is refused by name and, for an assignment, its last good form stays in force.

    An assignment that is refused keeps its agents: none of them falls to another one.

    Args:
        resources: name → payload; digests are verified already.
        previous: what was in force.
    """
    rejected: dict[str, str] = {}
    parts = _Parts()
    published: dict[str, Published] = {}
    later: dict[str, Published] = {}
    for name, payload in resources.items():
        kind, _, key = name.partition("/")
        try:
            if kind in (CONFIG, PACKAGES):
                published[name] = Published.model_validate_json(payload)
                if published[name].name != key:
                    raise ValueError(f"names itself {published[name].name}")
                if any((kind == PACKAGES) != isinstance(r, PackageRevision) for r in published[name].revisions):
                    raise ValueError("a revision is of another kind")
            else:
                parts.read(kind, name, payload)  # one of a later version is held, and not looked at
        except ValidationError as error:
            published.pop(name, None)
            rejected[name] = _invalid(error)
            if kind in (CONFIG, PACKAGES) and (known := _without_unknown(payload, error)) is not None:
                later[name] = known
        except (ValueError, RecursionError) as error:
            published.pop(name, None)
            rejected[name] = str(error).replace("\n", "; ")[:500]
    last_good = {f"{a.kind}/{a.published.name}": a for a in previous.assignments} if previous else {}
    assignments = []
    salvaged: set[str] = set()
    for name in {n for n in resources if n.partition("/")[0] in (CONFIG, PACKAGES)}:
        if name in published:
            try:
                assignments.append(_compile(name, published[name], parts))
                continue
            except ValueError as error:
                rejected[name] = str(error)
                left, is_new = _refuse(name, published[name], str(error), parts, last_good.get(name))
                assignments.append(left)
                if is_new:
                    salvaged.add(name)
        elif name in later:
            assignments.append(_too_old_for(name, later[name], rejected[name], last_good.get(name)))
        elif name in last_good:
            assignments.append(last_good[name])
    assignments.sort(key=lambda a: (a.published.name, a.kind))
    if previous is not None:
        # What cannot be read of these stays as it was: a yank must not be lost to a damaged list.
        parts.yanked = previous.yanked if _YANKED in rejected else parts.yanked
        if _KEYS in rejected:
            parts.download_keys, parts.signing_keys = previous.download_keys, previous.signing_keys
    return Snapshot(
        tuple(assignments),
        rejected,
        parts.yanked,
        parts.download_keys,
        parts.signing_keys,
        parts.prefetch,
        frozenset(salvaged),
    )


def _without_unknown(payload: bytes, error: ValidationError) -> Published | None:
    """An assignment of a later version without what this one does not know: it still says whom it is for.

    None where something else is wrong with it.
    """
    problems = error.errors(include_url=False)
    if any(problem["type"] != "extra_forbidden" for problem in problems):
        return None
    value = json.loads(payload)
    for problem in problems:
        *path, last = problem["loc"]
        part: Any = value
        for step in path:
            # Between the steps stands which member of a union it is.
            part = part if step in (CONFIG, PACKAGES) else part[step]
        part.pop(last, None)
    return Published.model_validate(value)


def _too_old_for(name: str, published: Published, reason: str, last_good: Assignment | None) -> Assignment:
    """What stays in force of an assignment of a later version: nothing of its new form may be made of the half of it."""
    newest = _newest(published) or (published.rollout.candidate if published.rollout is not None else None)
    refused = Refused(newest, reason) if newest is not None else None
    if last_good is not None:
        return dataclasses.replace(last_good, refused=refused)
    empty = published.model_copy(update={"stable": None, "rollout": None, "layers": [], "earlier": []})
    return Assignment(name.partition("/")[0], empty, None, (), frozenset({name}), refused=refused)


def _invalid(error: ValidationError) -> str:
    """In one line, and if it is of a later version: who is too old for what."""
    problems = error.errors(include_url=False)
    unknown = [_path(p["loc"]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return f"has {', '.join(unknown[:5])}, which this node is too old for: upgrade it"
    return "; ".join(f"{_path(p['loc'])}: {p['msg']}" for p in problems)[:500]


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(step) for step in loc if step not in (CONFIG, PACKAGES))


class _Parts:
    """What assignments are made of, by resource name."""

    def __init__(self) -> None:
        self.templates: dict[str, ConfigTemplate] = {}
        self.digests: dict[str, str] = {}
        self.variables: dict[str, RegionVariables] = {}
        self.packages: dict[str, PublishedPackage] = {}
        self.yanked: frozenset[str] = frozenset()
        self.download_keys: tuple[bytes, ...] = ()
        self.signing_keys: Mapping[str, str] = {}
        self.prefetch: frozenset[str] = frozenset()

    def read(self, kind: str, name: str, payload: bytes) -> None:
        """Take one resource.

        Raises:
            ValueError: it is not valid.
        """
        if kind == "ConfigTemplate":
            template = ConfigTemplate.model_validate(json.loads(payload))
            if problems := templates.problems_of(template):
                raise ValueError("; ".join(f"{path}: {reason}" for path, reason in problems))
            self.templates[name] = template
            self.digests[name] = sha256(payload).hex()
        elif kind == "RegionVariables":
            self.variables[name] = RegionVariables.model_validate(json.loads(payload))
        elif kind == "Package":
            self.packages[name] = PublishedPackage.model_validate(json.loads(payload))
        elif name == _YANKED:
            self.yanked = frozenset(YankedVersions.model_validate(json.loads(payload)).versions)
        elif name == _KEYS:
            keys = PackageKeys.model_validate(json.loads(payload))
            self.download_keys = tuple(bytes.fromhex(key) for key in keys.download)
            self.signing_keys = keys.signing
        elif name == _PREFETCH:
            self.prefetch = frozenset(Prefetch.model_validate(json.loads(payload)).sha256)


def _newest(published: Published) -> Revision | None:
    """The newest revision that all agents of an assignment should have: of a candidate for some none is sure to be."""
    change = published.rollout
    return change.candidate if change is not None and change.threshold >= EVERYONE else published.stable


def _refuse(
    name: str, published: Published, reason: str, parts: _Parts, last_good: Assignment | None
) -> tuple[Assignment, bool]:
    """What stays in force of an assignment that cannot be compiled, and whether that was made of its new form."""
    change, newest = published.rollout, _newest(published)
    refused = Refused(newest, reason) if newest is not None else None
    if change is not None and published.stable is not None:
        with contextlib.suppress(ValueError):
            base = _compile(name, published.model_copy(update={"rollout": None}), parts)
            return dataclasses.replace(base, refused=refused if newest != published.stable else base.refused), True
    if last_good is None:
        only_earlier = published.model_copy(update={"rollout": None, "layers": [], "stable": None})
        return dataclasses.replace(_compile(name, only_earlier, parts), refused=refused), True
    return dataclasses.replace(last_good, refused=refused), False


def _compile(name: str, published: Published, parts: _Parts) -> Assignment:
    kind = name.partition("/")[0]
    inputs = {name}

    def content(revision: Revision) -> Content:
        if isinstance(revision, PackageRevision):
            return _package_content(revision, parts, inputs)
        return _config_content(revision, parts, inputs)

    def able(revisions: Iterable[Revision]) -> Iterator[Content]:
        for revision in revisions:
            # A region that cannot make what went before never had it: that must not hold back what it can make.
            with contextlib.suppress(ValueError):
                yield content(revision)

    change, stable, refused = published.rollout, None, None
    branches = [(change, content(change.candidate))] if change is not None else []
    branches += [(layer, made) for layer in published.layers for made in able([layer.candidate])]
    if published.stable is not None:
        try:
            stable = content(published.stable)
        except ValueError as error:
            if not branches:
                raise
            refused = Refused(published.stable, str(error))
    earlier = tuple(able(published.earlier))
    return Assignment(kind, published, stable, tuple(branches), frozenset(inputs), earlier, refused)


def _config_content(revision: ConfigRevision, parts: _Parts, inputs: set[str]) -> ConfigContent:
    if revision.renderer not in RENDERERS:
        raise ValueError(f"needs renderer {revision.renderer}, which this node is too old for: upgrade it")
    template_name = f"ConfigTemplate/{revision.template}"
    template = parts.templates.get(template_name)
    if template is None:
        raise ValueError(f"{template_name} is missing or was refused")
    if parts.digests[template_name] != revision.template_digest:
        raise ValueError(f"{template_name} has another digest than the revision pins")
    inputs.add(template_name)
    region_values: dict[str, object] = {}
    if revision.variables:
        variables_name = f"RegionVariables/{revision.variables}"
        variables = parts.variables.get(variables_name)
        if variables is None:
            raise ValueError(f"{variables_name} is missing or was refused")
        inputs.add(variables_name)
        region_values = variables.spec.values
    resolved, problems = templates.resolve(template, revision.values, region_values)
    if problems:
        raise ValueError("; ".join(f"{variable}: {reason}" for variable, reason in problems))
    digest = bytes.fromhex(revision.template_digest)
    return ConfigContent(revision, template, resolved, templates.content_hash(digest, resolved, revision.renderer))


def _package_content(revision: PackageRevision, parts: _Parts, inputs: set[str]) -> PackageContent:
    packages = []
    for pin in revision.packages:
        name = f"Package/{pin}"
        package = parts.packages.get(name)
        if package is None:
            raise ValueError(f"{name} is missing or was refused")
        inputs.add(name)
        packages.append(package)
    return package_content(revision, packages)


def package_content(revision: PackageRevision, packages: Iterable[PublishedPackage]) -> PackageContent:
    """A revision with the versions that it pins."""
    return PackageContent(revision, tuple(packages))

"""What a node holds of policy: published resources, checked and compiled, each good or refused by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from relay.ids import sha256
from relay.policy import template as templates
from relay.policy.model import ConfigTemplate, RegionVariables
from relay.policy.packages import PublishedPackage
from relay.policy.published import (
    CONFIG,
    PACKAGES,
    ConfigRevision,
    PackageKeys,
    PackageRevision,
    Prefetch,
    Published,
    PublishedRollout,
    Revision,
    YankedVersions,
)
from relay.policy.resources import KEYS, PREFETCH, YANKED, Resource, is_assignment, split
from relay.policy.rollout import EVERYONE
from relay.policy.template import RENDERER, Resolved

RENDERERS = frozenset({RENDERER})


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
    branches: tuple[tuple[PublishedRollout, Content], ...]
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
        kind, key = split(name)
        try:
            if kind in (CONFIG, PACKAGES):
                published[name] = Published.model_validate_json(payload)
                if published[name].name != key:
                    raise ValueError(f"contains the name {published[name].name}")
                if any((kind == PACKAGES) != isinstance(r, PackageRevision) for r in published[name].revisions):
                    raise ValueError("a revision is of a different kind")
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
    for name in {n for n in resources if is_assignment(n)}:
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
        parts.yanked = previous.yanked if YANKED in rejected else parts.yanked
        if KEYS in rejected:
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
    try:
        return Published.model_validate(value)
    except ValidationError:  # what is left need not be good for that
        return None


def _too_old_for(name: str, published: Published, reason: str, last_good: Assignment | None) -> Assignment:
    """What stays in force of an assignment of a later version: nothing of its new form may be made of the half of it."""
    newest = _newest(published) or (published.rollout.candidate if published.rollout is not None else None)
    refused = Refused(newest, reason) if newest is not None else None
    if last_good is not None:
        return dataclasses.replace(last_good, refused=refused)
    empty = published.model_copy(update={"stable": None, "rollout": None, "layers": [], "earlier": []})
    return Assignment(split(name)[0], empty, None, (), frozenset({name}), refused=refused)


def too_old_for(unknown: list[str]) -> str:
    """What a node says of something with fields of a later version."""
    return f"has {', '.join(unknown[:5])}, which this node is too old to understand: upgrade it"


def _invalid(error: ValidationError) -> str:
    """In one line, and if it is of a later version: who is too old for what."""
    problems = error.errors(include_url=False)
    unknown = [_path(p["loc"]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return too_old_for(unknown)
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
        if kind == Resource.TEMPLATE:
            template = ConfigTemplate.model_validate(json.loads(payload))
            if problems := templates.problems_of(template):
                raise ValueError("; ".join(f"{path}: {reason}" for path, reason in problems))
            self.templates[name] = template
            self.digests[name] = sha256(payload).hex()
        elif kind == Resource.VARIABLES:
            self.variables[name] = RegionVariables.model_validate(json.loads(payload))
        elif kind == Resource.PACKAGE:
            self.packages[name] = PublishedPackage.model_validate(json.loads(payload))
        elif name == YANKED:
            self.yanked = frozenset(YankedVersions.model_validate(json.loads(payload)).versions)
        elif name == KEYS:
            keys = PackageKeys.model_validate(json.loads(payload))
            self.download_keys = tuple(bytes.fromhex(key) for key in keys.download)
            self.signing_keys = keys.signing
        elif name == PREFETCH:
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
    kind = split(name)[0]
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
        raise ValueError(f"needs renderer {revision.renderer}, which this node is too old to understand: upgrade it")
    template_name = Resource.TEMPLATE.name_of(revision.template)
    template = parts.templates.get(template_name)
    if template is None:
        raise ValueError(f"{template_name} is missing or was rejected")
    if parts.digests[template_name] != revision.template_digest:
        raise ValueError(f"{template_name} does not have the digest that the revision pins")
    inputs.add(template_name)
    region_values: dict[str, object] = {}
    if revision.variables:
        variables_name = Resource.VARIABLES.name_of(revision.variables)
        variables = parts.variables.get(variables_name)
        if variables is None:
            raise ValueError(f"{variables_name} is missing or was rejected")
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
        name = Resource.PACKAGE.name_of(pin)
        package = parts.packages.get(name)
        if package is None:
            raise ValueError(f"{name} is missing or was rejected")
        inputs.add(name)
        packages.append(package)
    return package_content(revision, packages)


def package_content(revision: PackageRevision, packages: Iterable[PublishedPackage]) -> PackageContent:
    """A revision with the versions that it pins."""
    return PackageContent(revision, tuple(packages))

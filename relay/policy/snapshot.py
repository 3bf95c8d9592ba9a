"""A node's policy: published resources, validated and compiled. Each is accepted or rejected on its own."""

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
    """A compiled config revision: the content of one slot."""

    revision: ConfigRevision
    template: ConfigTemplate
    resolved: Resolved
    content_hash: bytes

    def render(self) -> bytes:
        """Render the bytes for the slot. Not cached: that is up to the caller."""
        return templates.render(self.template, self.resolved)


@dataclass(frozen=True, slots=True, eq=False)
class PackageContent:
    """A compiled package revision: package versions, from which each agent takes the files that match it."""

    revision: PackageRevision
    packages: tuple[PublishedPackage, ...]


Content = ConfigContent | PackageContent


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """A revision that this region cannot compile. Its selector still says which agents the assignment is for."""

    revision: Revision
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """A compiled assignment."""

    kind: str
    """CONFIG or PACKAGES."""
    published: Published
    stable: Content | None
    branches: tuple[tuple[PublishedRollout, Content], ...]
    """The rollout and its candidate, then the superseded ones. An agent gets the first one that it is on."""
    inputs: frozenset[str]
    """Names of the resources that it was compiled from, its own included."""
    earlier: tuple[Content, ...] = ()
    """Former stable revisions, newest first."""
    refused: Refused | None = None
    """What agents should have but cannot be given here; the other fields then hold the last good state."""

    @property
    def contents(self) -> list[Content]:
        """All contents that agents may get: the candidates, the stable one, the earlier ones."""
        stable = [self.stable] if self.stable is not None else []
        return [*(content for _, content in self.branches), *stable, *self.earlier]

    @property
    def revisions(self) -> list[Revision]:
        """All revisions, a refused one first; their selectors say which agents the assignment is for."""
        return [*([self.refused.revision] if self.refused is not None else []), *(c.revision for c in self.contents)]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A region's complete policy, as of one manifest."""

    assignments: tuple[Assignment, ...] = ()
    """Ordered by name."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Resource name → why it is not in force (its last good state may be)."""
    yanked: frozenset[str] = frozenset()
    """NAME@VERSION of packages that agents must no longer get."""
    download_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Keys for download addresses: the first signs them, all are accepted."""
    signing_keys: Mapping[str, str] = field(default_factory=dict)
    """Name → public key in PEM; packages may be signed with any of them."""
    prefetch: frozenset[str] = frozenset()
    """SHA-256 of files to fetch before they are needed."""
    salvaged: frozenset[str] = frozenset()
    """Rejected assignments whose usable parts are in force."""

    @property
    def needed(self) -> frozenset[str]:
        """Resources that must be kept even if the manifest no longer lists them."""
        return frozenset().union(*(a.inputs for a in self.assignments))


def build(resources: Mapping[str, bytes], previous: Snapshot | None = None) -> Snapshot:
    """Compile resources. Invalid ones are rejected; a rejected assignment stays in force in its last good state.

    A rejected assignment keeps its agents: none of them moves to another assignment.

    Args:
        resources: name → payload. The caller has verified the digests.
        previous: the snapshot in force until now.
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
                parts.read(kind, name, payload)  # kinds of later versions are ignored
        except ValidationError as error:
            published.pop(name, None)
            rejected[name] = _invalid(error)
            if kind in (CONFIG, PACKAGES) and (readable := _without_unknown(payload, error)) is not None:
                later[name] = readable
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
                fallback, is_salvaged = _refuse(name, published[name], str(error), parts, last_good.get(name))
                assignments.append(fallback)
                if is_salvaged:
                    salvaged.add(name)
        elif name in later:
            assignments.append(_refuse_later(name, later[name], rejected[name], last_good.get(name)))
        elif name in last_good:
            assignments.append(last_good[name])
    assignments.sort(key=lambda a: (a.published.name, a.kind))
    if previous is not None:
        # If one of these is unreadable, keep the previous one: a damaged list must not undo a yank.
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
    """Drop the fields that only a later version knows: the rest still says which agents the assignment is for.

    None if anything else is wrong.
    """
    problems = error.errors(include_url=False)
    if any(problem["type"] != "extra_forbidden" for problem in problems):
        return None
    value = json.loads(payload)
    for problem in problems:
        *path, last = problem["loc"]
        part: Any = value
        for step in path:
            # Pydantic adds the member of the union to the path.
            part = part if step in (CONFIG, PACKAGES) else part[step]
        part.pop(last, None)
    try:
        return Published.model_validate(value)
    except ValidationError:  # the rest may still be invalid
        return None


def _refuse_later(name: str, published: Published, reason: str, last_good: Assignment | None) -> Assignment:
    """What stays in force of an assignment from a later version. Its known half must not be compiled."""
    newest = _newest(published) or (published.rollout.candidate if published.rollout is not None else None)
    refused = Refused(newest, reason) if newest is not None else None
    if last_good is not None:
        return dataclasses.replace(last_good, refused=refused)
    empty = published.model_copy(update={"stable": None, "rollout": None, "layers": [], "earlier": []})
    return Assignment(split(name)[0], empty, None, (), frozenset({name}), refused=refused)


def too_old_for(unknown: list[str]) -> str:
    """The reason for rejecting a resource with unknown fields."""
    return f"has {', '.join(unknown[:5])}, which this node is too old to understand: upgrade it"


def _invalid(error: ValidationError) -> str:
    """Format the problems in one line; unknown fields mean that this node is too old."""
    problems = error.errors(include_url=False)
    unknown = [_path(p["loc"]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return too_old_for(unknown)
    return "; ".join(f"{_path(p['loc'])}: {p['msg']}" for p in problems)[:500]


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(step) for step in loc if step not in (CONFIG, PACKAGES))


class _Parts:
    """Resources that assignments refer to, by name."""

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
        """Parse and keep one resource.

        Raises:
            ValueError: the resource is invalid.
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
    """The revision that all agents of an assignment should have: the candidate only once it is for everyone."""
    change = published.rollout
    return change.candidate if change is not None and change.threshold >= EVERYONE else published.stable


def _refuse(
    name: str, published: Published, reason: str, parts: _Parts, last_good: Assignment | None
) -> tuple[Assignment, bool]:
    """What stays in force of an assignment that cannot be compiled, and whether it was salvaged from the new state."""
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

    def compile_content(revision: Revision) -> Content:
        if isinstance(revision, PackageRevision):
            return _package_content(revision, parts, inputs)
        return _config_content(revision, parts, inputs)

    def compilable(revisions: Iterable[Revision]) -> Iterator[Content]:
        for revision in revisions:
            # A region that cannot compile an old revision never had it: that must not block newer ones.
            with contextlib.suppress(ValueError):
                yield compile_content(revision)

    change, stable, refused = published.rollout, None, None
    branches = [(change, compile_content(change.candidate))] if change is not None else []
    branches += [(layer, content) for layer in published.layers for content in compilable([layer.candidate])]
    if published.stable is not None:
        try:
            stable = compile_content(published.stable)
        except ValueError as error:
            if not branches:
                raise
            refused = Refused(published.stable, str(error))
    earlier = tuple(compilable(published.earlier))
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
    """Combine a revision with the package versions that it pins."""
    return PackageContent(revision, tuple(packages))

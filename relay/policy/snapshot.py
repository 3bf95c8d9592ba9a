"""What a node holds of policy: published resources, checked and compiled, each good or refused by itself.

The control plane publishes three kinds, as canonical JSON under names of its own:

- `ConfigTemplate/NAME@VERSION`: the document.
- `RegionVariables/REGION@DIGEST`: the document; old contents stay under their own names while a revision pins them.
- `ConfigAssignment/NAME`: a `Published` assignment: its selector and its revisions, which pin their inputs by digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field, ValidationError

from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy import template as templates
from relay.policy.model import ConfigTemplate, Model, Name, RegionVariables, Selector
from relay.policy.rollout import EVERYONE
from relay.policy.strategy import LocalGuard
from relay.policy.template import RENDERER, Resolved

_KINDS = ("ConfigTemplate", "RegionVariables", "ConfigAssignment")
RENDERERS = frozenset({RENDERER})


class Revision(Model):
    """One state of an assignment's content, by the digests of all its inputs."""

    template: str
    """NAME@VERSION."""
    template_digest: str
    values: dict[str, object]
    variables: str = ""
    """REGION@DIGEST of the region's variables; empty for none."""
    renderer: int
    selector: Selector = Selector()
    """Whom it is for: a change of the selector goes out by stages like every other."""


class Rollout(Model):
    """A change under way."""

    id: Name
    candidate: Revision
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
    slot: str
    priority: int
    stable: Revision | None
    rollout: Rollout | None
    layers: list[Rollout] = Field(default_factory=list)
    """Rollouts that newer ones superseded, the newest first: their agents keep what they have until their turn comes."""
    retry: int = 0
    """Failures of an earlier retry generation are forgiven."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A revision made ready: what one slot will hold."""

    revision: Revision
    template: ConfigTemplate
    resolved: Resolved
    content_hash: bytes

    def render(self) -> bytes:
        """The bytes for the slot; the owner keeps them."""
        return templates.render(self.template, self.resolved)


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """A published assignment made ready."""

    published: Published
    stable: Content | None
    branches: tuple[tuple[Rollout, Content], ...]
    """The rollout and its candidate, then those of superseded ones: the first that an agent is on counts."""
    inputs: frozenset[str]
    """Names of the resources that it was made of, its own included."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a region serves by, at one manifest."""

    assignments: tuple[Assignment, ...] = ()
    """Highest priority first, then by name: the first that matches wins its slot."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Resource name → why it is not in force (its last good form may be)."""

    @property
    def needed(self) -> frozenset[str]:
        """Resources that must be kept, even where the manifest no longer names them."""
        return frozenset().union(*(a.inputs for a in self.assignments))


def template_resource(template: ConfigTemplate) -> tuple[str, bytes]:
    """(resource name, payload) of a template."""
    return f"ConfigTemplate/{template.key}", canonical_json(template.model_dump())


def variables_resource(variables: RegionVariables) -> tuple[str, bytes]:
    """(resource name, payload) of a region's variables."""
    payload = canonical_json(variables.model_dump())
    return f"RegionVariables/{variables.key}@{sha256(payload).hex()[:16]}", payload


def assignment_resource(published: Published) -> tuple[str, bytes]:
    """(resource name, payload) of an assignment."""
    return f"ConfigAssignment/{published.name}", canonical_json(published.model_dump())


def build(resources: Mapping[str, bytes], previous: Snapshot | None = None) -> Snapshot:
    """Compile resources; what is bad is refused by name and, for an assignment, its last good form stays in force.

    Args:
        resources: name → payload; digests are verified already.
        previous: what was in force.
    """
    rejected: dict[str, str] = {}
    parsed: dict[str, ConfigTemplate | RegionVariables] = {}
    digests: dict[str, str] = {}
    published: dict[str, Published] = {}
    for name, payload in resources.items():
        kind, _, key = name.partition("/")
        if kind not in _KINDS:
            continue  # of a later version: held, and not looked at
        try:
            value = json.loads(payload)
            if kind == "ConfigTemplate":
                template = ConfigTemplate.model_validate(value)
                if problems := templates.problems_of(template):
                    raise ValueError("; ".join(f"{path}: {reason}" for path, reason in problems))
                parsed[name] = template
                digests[name] = sha256(payload).hex()
            elif kind == "RegionVariables":
                parsed[name] = RegionVariables.model_validate(value)
            else:
                published[name] = Published.model_validate(value)
                if published[name].name != key:
                    raise ValueError(f"names itself {published[name].name}")
        except (ValueError, ValidationError, RecursionError) as error:
            published.pop(name, None)
            rejected[name] = str(error).replace("\n", "; ")[:500]
    last_good = {f"ConfigAssignment/{a.published.name}": a for a in previous.assignments} if previous else {}
    assignments = []
    for name in {n for n in resources if n.startswith("ConfigAssignment/")}:
        if name in published:
            try:
                assignments.append(_compile(name, published[name], parsed, digests))
                continue
            except ValueError as error:
                rejected[name] = str(error)
        if name in last_good:
            assignments.append(last_good[name])
    assignments.sort(key=lambda a: (-a.published.priority, a.published.name))
    return Snapshot(tuple(assignments), rejected)


def _compile(
    name: str,
    published: Published,
    parsed: Mapping[str, ConfigTemplate | RegionVariables],
    digests: Mapping[str, str],
) -> Assignment:
    inputs = {name}

    def content(revision: Revision) -> Content:
        if revision.renderer not in RENDERERS:
            raise ValueError(f"renderer {revision.renderer} is not known here")
        template_name = f"ConfigTemplate/{revision.template}"
        template = parsed.get(template_name)
        if not isinstance(template, ConfigTemplate):
            raise ValueError(f"{template_name} is missing or was refused")
        if digests[template_name] != revision.template_digest:
            raise ValueError(f"{template_name} has another digest than the revision pins")
        inputs.add(template_name)
        region_values: dict[str, object] = {}
        if revision.variables:
            variables_name = f"RegionVariables/{revision.variables}"
            variables = parsed.get(variables_name)
            if not isinstance(variables, RegionVariables):
                raise ValueError(f"{variables_name} is missing or was refused")
            inputs.add(variables_name)
            region_values = variables.spec.values
        resolved, problems = templates.resolve(template, revision.values, region_values)
        if problems:
            raise ValueError("; ".join(f"{variable}: {reason}" for variable, reason in problems))
        digest = bytes.fromhex(revision.template_digest)
        return Content(revision, template, resolved, templates.content_hash(digest, resolved, revision.renderer))

    rollouts = ([published.rollout] if published.rollout else []) + published.layers
    branches = tuple((change, content(change.candidate)) for change in rollouts)
    stable = None
    if published.stable is not None:
        try:
            stable = content(published.stable)
        except ValueError:
            # Nobody is on it: what this region cannot render of it must not hold back the candidate.
            if published.rollout is None or published.rollout.threshold < EVERYONE:
                raise
    return Assignment(published, stable, branches, frozenset(inputs))

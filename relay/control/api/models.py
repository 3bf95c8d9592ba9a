"""What the admin API is sent and answers, for its description: `/api/v1/openapi.json`.

Answers are made as plain values by the views; `tests/control/api/test_models.py` holds that they are what stands here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field


class RequestBody(BaseModel):
    """Base of what is sent: a key that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """Base of all answers. A later version may say more."""

    model_config = ConfigDict(extra="allow")


class ProblemDetail(Answer):
    """One thing that is wrong."""

    source: str
    line: int
    path: str
    reason: str
    text: str


class Problem(Answer):
    """RFC 9457: what every refusal is."""

    type: str
    status: int
    detail: str
    problems: list[ProblemDetail] | None = None


class Done(Answer):
    """Something was done to something."""

    kind: str
    name: str
    action: str


class Applied(Done):
    """What became of a document."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    warnings: list[str]


class Begun(Answer):
    """A rollout that a change began."""

    name: str
    assignment: str
    state: str
    reason: str


class ApplyAnswer(Answer):
    """What became of what was applied."""

    documents: list[Applied]
    rollouts: list[Begun]


class Undone(Applied):
    """An assignment asks again for what it was before."""

    rollout: str
    to: str


class DiffPair(Answer):
    """Agents that would go from one config to another."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    from_: str | None = Field(alias="from")
    to: str | None
    agents: int
    names: list[str]
    text: str


class DiffAnswer(Answer):
    """What a change would do."""

    documents: list[Applied]
    agents_changed: int
    by_region: dict[str, int]
    by_assignment: dict[str, int]
    diffs: list[DiffPair]
    conflicts: list[str]
    orphans: list[str]
    orphans_total: int
    missing_components: list[dict[str, Any]]
    missing_components_total: int
    warnings: list[str]


class DriftEntry(Answer):
    """An agent that an assignment observes."""

    agent: str
    region: str
    assignment: str
    slot: str
    state: str
    differences: list[dict[str, Any]]


class RegionView(Answer):
    """Sums of a region."""

    name: str
    nodes: int
    nodes_connected: int
    agents: int
    connected: int
    healthy: int
    unhealthy: int
    unknown: int
    config_status: dict[str, int]


class Rejected(Answer):
    """What a node does not take of its policy."""

    name: str
    digest: str
    reason: str


class NodeView(Answer):
    """A node."""

    name: str
    region: str
    connected: bool
    agents: int
    connected_agents: int | None
    manifest: list[int] | None
    policy_age_s: float | None
    rejected: list[Rejected]
    version: str
    verified: bool
    departed: bool
    clock_behind_s: float
    refused_agents: list[dict[str, str]]
    problems: list[str]


class AgentConfig(Answer):
    """What config an agent was offered, and what became of it."""

    offered_hash: str
    reported_hash: str
    status: str
    error_message: str
    assignments: list[str]


class AgentView(Answer):
    """An agent; of lists those fields that were asked for."""

    instance_uid: str
    agent_id: str
    region: str
    node: str
    connected: bool | None
    transport: str
    healthy: bool | None
    health_error: str
    labels: dict[str, Any]
    host_name: Any
    version: Any
    attributes: dict[str, Any]
    capabilities: list[str]
    config: AgentConfig
    packages: dict[str, Any]
    withheld: list[dict[str, Any]]
    effective_config_digest: str
    first_seen: str
    last_change: str


class WholeAgent(AgentView):
    """An agent with all that it says of itself."""

    health: dict[str, Any] | None
    components: dict[str, list[str]]


class ConfigBody(Answer):
    """One slot of a config."""

    content_type: str
    body: str


class Explanation(Answer):
    """Why an agent gets what it gets."""

    agent: str
    region: str
    slots: list[dict[str, Any]]
    packages: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    notes: list[str]


class Stage(Answer):
    """A stage of a rollout."""

    name: str
    state: str
    started: str | None
    counts: dict[str, int]
    gate: dict[str, str]


class RolloutAnswer(Answer):
    """A rollout."""

    name: str
    assignment: str
    kind: str
    state: str
    reason: str
    stage: int
    stages: list[Stage]
    regions: dict[str, dict[str, Any]]
    stable: str | None
    candidate: str
    template: str
    stable_template: str | None
    troubled: list[dict[str, Any]]
    digest: str
    created_by: str
    created: str
    ended: str | None
    approvals_needed: int
    approvals: list[dict[str, Any]]


class AuditEntry(Answer):
    """Who did what."""

    number: int
    at: str
    actor: str
    verified: bool
    action: str
    subject: str
    before: str
    after: str
    reason: str
    hash: str


class AuditCheck(Answer):
    """Whether the chain of hashes is whole."""

    entries: int
    ok: bool
    broken_at: int | None
    hash: str


class ConfigAnswer(Answer):
    """What a hash stands for."""

    hash: str
    kind: str
    name: str
    slots: dict[str, dict[str, Any]]


class Uploaded(Answer):
    """How much of a file is here."""

    offset: int
    complete: bool


class PackageView(Answer):
    """A version of a package."""

    name: str
    version: str
    type: str
    files: list[dict[str, Any]]


class Prefetched(Answer):
    """Where a version is fetched ahead."""

    name: str
    version: str
    regions: list[str]
    unknown: list[str]


class PackageStatus(Answer):
    """What agents say of packages."""

    packages: list[dict[str, Any]]
    agents: list[dict[str, Any]]
    agents_total: int


class Epoch(Answer):
    """The epoch that has begun."""

    epoch: int


class Orphans(Answer):
    """Agents that would match nothing any more."""

    agents: int
    names: list[str]


class DocumentVersion(Answer):
    """A generation of a document."""

    generation: int
    at: str
    actor: str
    deleted: bool
    document_digest: str


class RevisionName(Answer):
    """Which revision."""

    template: str
    revision: str


class AssignmentView(Answer):
    """What is in force of an assignment, and what was taken back of what it asks for."""

    name: str
    kind: str
    in_force: RevisionName | None
    taken_back: RevisionName | None
    rollout: str | None
    state: str | None


class Change(Answer):
    """A value that a rollout changes."""

    path: str
    before: Any
    after: Any


class RolloutDiff(Answer):
    """What a rollout changes."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    rollout: str
    assignment: str
    from_: RevisionName | None = Field(alias="from")
    to: RevisionName
    changes: list[Change]
    configs: list[dict[str, Any]]
    notes: list[str]


class StoredDocument(Answer):
    """A document as people wrote it."""

    apiVersion: str
    kind: str
    metadata: dict[str, Any]
    spec: dict[str, Any]


_PROBLEM = "application/problem+json"


_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused", "content": {_PROBLEM: {"schema": _REFERENCE}}}
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def answers(model: Any, tag: str) -> dict[str, Any]:
    """What a route's decorator takes: the description of its answers, without checking each of them."""
    return {"response_model": None, "tags": [tag], "responses": {200: {"model": model}, **_REFUSALS}}


def answers_bytes(tag: str) -> dict[str, Any]:
    """As `answers`, of a route that gives a file."""
    done = {"description": "The bytes", "content": _BYTES}
    return {"response_class": Response, "tags": [tag], "responses": {200: done, **_REFUSALS}}


def describe(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with what refusals are."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema.pop("$defs")
        document["components"]["schemas"] |= {"Problem": schema, **parts}
        api.openapi_schema = document
    return api.openapi_schema

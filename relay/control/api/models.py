"""Models of the admin API's requests and responses, for `/api/v1/openapi.json`.

The views build responses as plain values; `tests/control/api/test_models.py` checks them against these models.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field


class RequestBody(BaseModel):
    """Base of request bodies. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """Base of all responses. Later versions can add fields."""

    model_config = ConfigDict(extra="allow")


class ProblemDetail(Answer):
    """One problem in a request."""

    source: str
    line: int
    path: str
    reason: str
    text: str


class Problem(Answer):
    """The body of every error response (RFC 9457)."""

    type: str
    status: int
    detail: str
    problems: list[ProblemDetail] | None = None


class Done(Answer):
    """An action was done to an object."""

    kind: str
    name: str
    action: str


class Applied(Done):
    """The result for one document."""

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
    """The result of applying documents."""

    documents: list[Applied]
    rollouts: list[Begun]


class Undone(Applied):
    """An assignment was set back to an earlier revision."""

    rollout: str
    to: str


class DiffPair(Answer):
    """Agents that would change from one config to another."""

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
    """A region, with counts."""

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
    """A part of its policy that a node rejects."""

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
    clock_skew_s: float
    refused_agents: list[dict[str, str]]
    problems: list[str]
    identity: str
    certificate: dict[str, str] | None


class AgentConfig(Answer):
    """The config that an agent was offered, and its status."""

    offered_hash: str
    reported_hash: str
    status: str
    error_message: str
    assignments: list[str]


class ApiKeyView(Answer):
    """An agent's API key, without the secret."""

    id: str
    subject: str
    kind: str
    labels: dict[str, Any]
    regions: list[str]
    created: str
    created_by: str
    expires: str
    replaced_by: str


class NewKey(ApiKeyView):
    """A new API key, with the secret: the only place where it is ever shown."""

    key: str


class TokenView(Answer):
    """A person's token, without the secret."""

    id: str
    name: str
    owner: str
    role: str
    scope: dict[str, str]
    on_nodes: bool
    created: str
    created_by: str
    expires: str
    made_with: str


class NewToken(TokenView):
    """A new token, with the secret: the only place where it is ever shown."""

    token: str


class RevocationReach(Answer):
    """How far a revocation has come in a region."""

    region: str
    in_force: bool
    not_heard_since: str


class RevocationView(Answer):
    """Credentials of agents that are refused."""

    id: str
    kind: str
    value: str
    reason: str
    by: str
    at: str
    known: bool | None = None
    regions: list[RevocationReach] | None = None


class JoinTokenView(Answer):
    """A token by which nodes join, without the secret."""

    id: str
    region: str
    name: str
    uses: int
    used_by: list[str]
    replace: bool
    created: str
    created_by: str
    expires: str


class NewJoinToken(JoinTokenView):
    """A new join token, with the secret: the only place where it is ever shown."""

    token: str


class TrustView(Answer):
    """What nodes trust."""

    version: int
    trust_domain: str
    roots: list[PublicKey]
    manifest: list[PublicKey]
    ca: list[dict[str, str]]
    nodes_on_former_ca: list[str]
    nodes_connected: int
    nodes_without: list[str]


class PublicKey(Answer):
    """A public key (Ed25519, hex); its id is its SHA-256."""

    id: str
    key: str


class RotationView(Answer):
    """A rotation of a key, and what a root must sign for it: the payloads of key sets, as text."""

    rotation: str
    version: int
    to_sign: list[str]


class AuthConfig(Answer):
    """How people authenticate."""

    type: str
    device_flow: bool


class LoginView(Answer):
    """A login under way, or done: then it has the token of the session, the only place where it is ever shown."""

    login: str | None = None
    url: str | None = None
    user_code: str | None = None
    verification_uri: str | None = None
    verification_uri_complete: str | None = None
    wait_s: float | None = None
    token: str | None = None
    user: str | None = None
    expires: str | None = None


class GrantView(Answer):
    """A role for some agents."""

    role: str
    scope: dict[str, str]


class WhoAmI(Answer):
    """Whom the server takes the caller for."""

    user: str
    role: str
    scope: dict[str, str]
    grants: list[GrantView]
    groups: list[str]
    credential: str
    expires: str | None


class Answered(Answer):
    """Whether the caller may do something."""

    allowed: bool
    reason: str


class AgentCredential(Answer):
    """The credential that an agent came with; the method is `none` where its node asks for none."""

    method: str
    subject: str
    credential: str
    expires: str | None


class AgentView(Answer):
    """An agent. Lists contain only the requested fields."""

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
    auth: AgentCredential
    effective_config_digest: str
    first_seen: str
    last_change: str


class WholeAgent(AgentView):
    """An agent with everything that it reported."""

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
    """One entry of the audit."""

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
    """Whether the audit's chain of hashes is intact."""

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
    """How much of a file has arrived."""

    offset: int
    complete: bool


class PackageView(Answer):
    """A version of a package."""

    name: str
    version: str
    type: str
    files: list[dict[str, Any]]


class Prefetched(Answer):
    """The regions that fetch a version in advance."""

    name: str
    version: str
    regions: list[str]
    unknown: list[str]


class PackageStatus(Answer):
    """What agents report about packages."""

    packages: list[dict[str, Any]]
    agents: list[dict[str, Any]]
    agents_total: int


class Epoch(Answer):
    """The new epoch."""

    epoch: int


class Orphans(Answer):
    """Agents that would match nothing."""

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
    """The name of a revision."""

    template: str
    revision: str


class AssignmentView(Answer):
    """The revision of an assignment that is in force, and one that was withdrawn or refused."""

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
    """Arguments for a route's decorator: describes its responses, without validating each one."""
    return {"response_model": None, "tags": [tag], "responses": {200: {"model": model}, **_REFUSALS}}


def answers_bytes(tag: str) -> dict[str, Any]:
    """Like `answers`, for a route that returns a file."""
    success = {"description": "The bytes", "content": _BYTES}
    return {"response_class": Response, "tags": [tag], "responses": {200: success, **_REFUSALS}}


def describe(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, including the schema of errors."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema.pop("$defs")
        document["components"]["schemas"] |= {"Problem": schema, **parts}
        api.openapi_schema = document
    return api.openapi_schema

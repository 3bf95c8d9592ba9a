"""The admin API, `/api/v1`: documents in, documents and the fleet out; errors are problem+json (RFC 9457).

Until people can be authenticated it serves loopback only, and a browser's page of another site cannot reach it: writes
must be application/json, which such a page may not send unasked, and the Host must be one of ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from relay import __version__
from relay.control.api import models
from relay.control.api.audit import add_audit_routes
from relay.control.api.fleet import add_fleet_routes
from relay.control.api.models import (
    ApplyAnswer,
    ConfigAnswer,
    DiffAnswer,
    DocumentVersion,
    DriftEntry,
    Orphans,
    StoredDocument,
    Undone,
    answers,
)
from relay.control.api.packages import add_package_routes
from relay.control.api.pages import After, Limit, behind
from relay.control.api.rollouts import Actor, add_rollout_routes
from relay.control.condition import Condition
from relay.control.documents.apply import ANONYMOUS, Applied, Documents
from relay.control.engine.rollouts import Rollouts
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.audit import Audit
from relay.control.ledger.versions import Versions
from relay.control.packages.registry import Packages
from relay.control.regions.archive import Configs
from relay.control.regions.publisher import Publisher
from relay.control.review.changes import Changes
from relay.control.review.diff import Diffs
from relay.control.review.drift import drift
from relay.control.review.preview import Previews
from relay.errors import NotFound, Outcome, Problem, Refused, RelayError
from relay.observe.metrics import CONTENT_TYPE, ControlPlaneMetrics
from relay.policy import kinds

STATUS = {
    Outcome.BAD_REQUEST: 422,
    Outcome.TOO_LARGE: 413,
    Outcome.UNAUTHENTICATED: 401,
    Outcome.DENIED: 403,
    Outcome.NOT_FOUND: 404,
    Outcome.CONFLICT: 409,
    Outcome.UNAVAILABLE: 503,
    Outcome.INTERNAL: 500,
}
"""The admin API's table."""
_PLURALS = {kind.plural: name for name, kind in kinds.KINDS.items()}
_STALE = "X-OpAMP-Relay-Stale"
"""Header of all answers while nothing can be stored: why what is shown may be out of date."""
_NO_CHANGES = frozenset({"/api/v1/diff", "/api/v1/epoch"})
"""What is posted and changes no policy."""
_NO_POLICY = ("/api/v1/nodes/", "/api/v1/uploads/")
"""Likewise, all below them."""
Published = Callable[[], Awaitable[None]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceText(_Body):
    """One file of documents."""

    source: str = Field(max_length=4096)
    text: str


class UndoRequest(_Body):
    """What to go back to."""

    to: str = Field(default="", max_length=200, description="a rollout of the assignment; empty for the one before")


class ApplyRequest(_Body):
    """Documents that are applied as one."""

    sources: list[SourceText] = Field(min_length=1, max_length=10_000)
    dry_run: bool = False


def build_api(
    documents: Documents,
    fleet: Fleet,
    rollouts: Rollouts,
    audit: Audit,
    previews: Previews,
    configs: Configs,
    changes: Changes,
    versions: Versions,
    diffs: Diffs,
    packages: Packages,
    publisher: Publisher,
    condition: Condition,
    *,
    published: Published,
    metrics: ControlPlaneMetrics,
    max_body_bytes: int,
    hosts: Callable[[], frozenset[str]] | None,
) -> FastAPI:
    """Make the ASGI application.

    Args:
        published: called after documents changed; brings the regions up to date.
        hosts: values of the Host header that are ours; None to take any.
    """
    api = FastAPI(
        title="OpAMP relay control plane",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_only_known_parameters)],
        generate_unique_id_function=lambda route: route.name,
    )
    api.openapi = lambda: models.describe(api)  # type: ignore[method-assign]
    _add_guards(api, max_body_bytes, hosts, condition)
    _add_document_routes(api, documents, versions, published, metrics)
    add_fleet_routes(api, fleet, previews)
    add_rollout_routes(api, rollouts, changes)
    add_audit_routes(api, audit, publisher, fleet)
    add_package_routes(api, packages, fleet, publisher)

    @api.post("/api/v1/diff", **answers(DiffAnswer, "documents"))
    async def diff_documents(request: ApplyRequest) -> dict[str, Any]:
        """What applying these documents would do; nothing changes."""
        return await diffs.diff((s.source, s.text) for s in request.sources)

    @api.get("/api/v1/documents/{plural}/{name}/orphans", **answers(Orphans, "documents"))
    async def list_orphans(plural: str, name: str) -> dict[str, Any]:
        """Agents that would match nothing any more if a document were deleted; they would keep what they have."""
        return await diffs.orphans(_kind(plural), name)

    @api.get("/api/v1/drift", **answers(list[DriftEntry], "documents"))
    async def list_drift(
        limit: Limit = None, after: Annotated[str, Query(description="the last agent before")] = ""
    ) -> list[dict[str, Any]]:
        """Agents that assignments observe, and what of their configs is otherwise."""
        return behind(await drift(fleet, rollouts.revisions), after, lambda row: str(row["agent"]))[:limit]

    @api.post("/api/v1/assignments/{name}/undo", **answers(Undone, "rollouts"))
    async def undo_assignment(name: str, request: UndoRequest, actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Ask again for what an assignment was before; a new rollout."""
        earlier = await rollouts.earlier(name, request.to)
        applied = await documents.again(name, earlier.candidate, actor=actor)
        await published()
        return {**_applied(applied), "rollout": rollouts.latest(name), "to": earlier.candidate.title}

    @api.get("/api/v1/configs/{config_hash}", **answers(ConfigAnswer, "rollouts"))
    async def get_config(config_hash: str) -> dict[str, Any]:
        """What exactly a hash stands for: of a config or a content by slot, of a revision by region, a document."""
        try:
            return await configs.get(config_hash)
        except NotFound as error:
            if not re.fullmatch("[0-9a-f]{8,64}", config_hash):
                raise
            try:
                return await changes.stands_for(config_hash)
            except NotFound:
                raise error from None

    @api.get("/health", include_in_schema=False)
    async def health() -> dict[str, Any]:
        degraded = condition.degraded
        return {"status": "degraded", "degraded": degraded} if degraded else {"status": "ok"}

    @api.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        reason = condition.unwritable
        return (
            JSONResponse({"ready": False, "reason": reason}, status_code=503)
            if reason
            else JSONResponse({"ready": True})
        )

    @api.get("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(metrics.expose(), media_type=CONTENT_TYPE)

    return api


def _add_document_routes(
    api: FastAPI, documents: Documents, versions: Versions, published: Published, metrics: ControlPlaneMetrics
) -> None:
    @api.post("/api/v1/apply", **answers(ApplyAnswer, "documents"))
    async def apply_documents(request: ApplyRequest, actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Apply documents: all or none. With dry_run nothing changes."""
        try:
            texts = [(s.source, s.text) for s in request.sources]
            outcomes = await documents.apply(texts, dry_run=request.dry_run, actor=actor)
        except Refused:
            metrics.applies["refused"] += 1
            raise
        if not request.dry_run:
            metrics.applies["done"] += 1
            await published()  # also where nothing changed: it may have failed the last time
        return {
            "documents": [_applied(a) for a in outcomes.applied],
            "rollouts": [dataclasses.asdict(begun) for begun in outcomes.rollouts],
        }

    @api.get("/api/v1/documents/{plural}", **answers(list[StoredDocument], "documents"))
    async def list_documents(plural: str, limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """All documents of a kind, by name: templates, assignments, regionvariables, ..."""
        return documents.listing(_kind(plural), after=after)[:limit]

    @api.get("/api/v1/documents/{plural}/{name}", **answers(StoredDocument, "documents"))
    async def get_document(plural: str, name: str) -> dict[str, Any]:
        """One document; a template by NAME@VERSION."""
        return documents.get(_kind(plural), name)

    @api.get("/api/v1/documents/{plural}/{name}/versions", **answers(list[DocumentVersion], "documents"))
    async def list_document_versions(
        plural: str,
        name: str,
        limit: Limit = None,
        after: Annotated[int, Query(ge=0, description="the last generation before")] = 0,
    ) -> list[dict[str, Any]]:
        """When a document was changed, by whom: its generations, oldest first."""
        return [row for row in await versions.listing(_kind(plural), name) if row["generation"] > after][:limit]

    @api.get("/api/v1/documents/{plural}/{name}/versions/{generation}", **answers(StoredDocument, "documents"))
    async def get_document_version(plural: str, name: str, generation: int) -> dict[str, Any]:
        """A document as it was."""
        return await versions.get(_kind(plural), name, generation)

    @api.delete("/api/v1/documents/{plural}/{name}", **answers(models.Applied, "documents"))
    async def delete_document(plural: str, name: str, actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Delete one document that nothing uses."""
        applied = await documents.delete(_kind(plural), name, actor=actor)
        await published()
        return _applied(applied)


def _kind(plural: str) -> str:
    if plural not in _PLURALS:
        raise NotFound(f"there are no {plural}; there are {', '.join(_PLURALS)}")
    return _PLURALS[plural]


def _applied(applied: Applied) -> dict[str, Any]:
    return {
        "kind": applied.kind,
        "name": applied.name,
        "action": applied.action,
        "before": applied.before,
        "after": applied.after,
        "warnings": list(applied.warnings),
    }


def _add_guards(
    api: FastAPI, max_body_bytes: int, hosts: Callable[[], frozenset[str]] | None, condition: Condition
) -> None:
    @api.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if hosts is not None and request.headers.get("host", "") not in hosts():
            return problem(403, "Host is not one of this server's")
        if request.method in ("POST", "PUT", "PATCH") and (
            not (methods := _methods(api, request)) or request.method in methods
        ):
            # Neither can be sent by a browser's page of another site without asking.
            expected = "application/octet-stream" if request.method == "PATCH" else "application/json"
            if request.headers.get("content-type", "").partition(";")[0].strip() != expected:
                return problem(415, f"Content-Type must be {expected}")
            if "transfer-encoding" in request.headers:
                return problem(411, "Content-Length is needed, and no Transfer-Encoding")
            length = request.headers.get("content-length", "")
            if not length.isdigit():
                return problem(411, "Content-Length is needed")
            if int(length) > max_body_bytes:
                return problem(413, f"the body is larger than {max_body_bytes} bytes")
        is_change = request.method in ("POST", "PUT", "PATCH", "DELETE") and request.url.path not in _NO_CHANGES
        if is_change and not request.url.path.startswith(_NO_POLICY) and condition.refusal:
            return problem(409, condition.refusal)
        answer = await call_next(request)
        if condition.unwritable:  # reports that are not stored do not count either
            answer.headers[_STALE] = condition.unwritable.encode("ascii", "replace").decode()
        return answer

    @api.exception_handler(RelayError)
    async def relay_error(_: Request, error: RelayError) -> Response:
        details = []
        if isinstance(error, Refused):
            details = [
                {"source": p.source, "line": p.line, "path": p.path, "reason": p.reason, "text": str(p)}
                for p in error.problems
            ]
        return problem(STATUS[error.outcome], str(error), problems=details)

    @api.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return problem(500, f"internal error ({type(error).__name__}); the log has it")

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer.headers["Allow"] = ", ".join(_methods(api, request))
        return answer

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        details = [
            {"source": "request", "line": 0, "path": ".".join(map(str, e["loc"])), "reason": e["msg"]}
            for e in error.errors()
        ]
        for detail in details:
            detail["text"] = f"request: {detail['path']}: {detail['reason']}"
        return problem(422, "the request is not valid", problems=details)


def _methods(api: FastAPI, request: Request) -> list[str]:
    """What may be done with the path of a request."""
    return sorted(
        {
            method
            for route in api.routes
            if isinstance(route, Route) and route.path_regex.match(request.url.path)
            for method in route.methods or ()
        }
    )


async def _only_known_parameters(request: Request) -> None:
    """A filter that nobody knows must not be taken for one that matches everything."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    twice = sorted({n for n in known if len(request.query_params.getlist(n)) > 1} - {"label"})
    if twice:
        raise Refused([Problem("request", 0, name, "is given more than once") for name in twice])
    if unknown:
        has = ", ".join(sorted(known)) or "none"
        raise Refused([Problem("request", 0, name, f"unknown parameter; there are: {has}") for name in unknown])


def problem(status: int, detail: str, *, problems: list[dict[str, Any]] | None = None) -> Response:
    """An RFC 9457 answer; `problems` names each thing that is wrong."""
    content: dict[str, Any] = {"type": "about:blank", "status": status, "detail": detail}
    if problems:
        content["problems"] = problems
    return JSONResponse(content, status_code=status, media_type="application/problem+json")

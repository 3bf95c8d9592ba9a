"""Routes of documents: apply, read, delete, and preview changes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import Field

from relay.control.access import actor as access
from relay.control.api import models
from relay.control.api.caller import Actor, Reveal, is_masked
from relay.control.api.models import (
    ApplyAnswer,
    DiffAnswer,
    DocumentVersion,
    Orphans,
    RequestBody,
    StoredDocument,
    answers,
)
from relay.control.api.pages import After, Limit
from relay.control.documents.apply import Documents
from relay.control.documents.proposal import Applied
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_name
from relay.control.ledger.versions import Versions
from relay.control.review.diff import Diffs
from relay.errors import Forbidden, NotFound, Refused
from relay.observe.metrics import ControlPlaneMetrics
from relay.policy.kinds import BY_PLURAL
from relay.policy.mask import Mask


class SourceText(RequestBody):
    """One file of documents."""

    source: str = Field(max_length=4096)
    text: str


class ApplyRequest(RequestBody):
    """Documents to apply: all or none."""

    sources: list[SourceText] = Field(min_length=1, max_length=10_000)
    dry_run: bool = False


def add_document_routes(
    api: FastAPI,
    documents: Documents,
    versions: Versions,
    diffs: Diffs,
    ledger: Ledger,
    metrics: ControlPlaneMetrics,
) -> None:
    """Add the routes to the application."""

    def shown(kind: str, document: dict[str, Any], actor: access.Actor, reveal: bool) -> dict[str, Any]:
        """A document, with its secrets only for who may change it."""
        is_hidden = is_masked(actor, reveal)
        if not is_hidden:
            metadata = document["metadata"]
            name = metadata["name"] + (f"@{metadata['version']}" if "version" in metadata else "")
            try:
                check_name(actor, ledger.state, kind, name)
            except Forbidden:
                is_hidden = True
        return {**document, "spec": Mask().document(document["spec"])} if is_hidden and "spec" in document else document

    @api.post("/api/v1/apply", **answers(ApplyAnswer, "documents"))
    async def apply_documents(request: ApplyRequest, actor: Actor) -> dict[str, Any]:
        """Apply documents: all or none. With dry_run, only check them."""
        try:
            texts = [(s.source, s.text) for s in request.sources]
            outcomes = await documents.apply(texts, dry_run=request.dry_run, actor=actor)
        except Refused:
            metrics.applies["refused"] += 1
            raise
        if not request.dry_run:
            metrics.applies["done"] += 1
        return {
            "documents": [applied_view(a) for a in outcomes.applied],
            "rollouts": [dataclasses.asdict(begun) for begun in outcomes.rollouts],
        }

    @api.get("/api/v1/documents/{plural}", **answers(list[StoredDocument], "documents"))
    async def list_documents(
        plural: str, actor: Actor, limit: Limit = None, after: After = "", reveal: Reveal = False
    ) -> list[dict[str, Any]]:
        """All documents of a kind (templates, assignments, regionvariables, ...), sorted by name."""
        kind = _kind(plural)
        return [shown(kind, document, actor, reveal) for document in documents.listing(kind, after=after)[:limit]]

    @api.get("/api/v1/documents/{plural}/{name}", **answers(StoredDocument, "documents"))
    async def get_document(plural: str, name: str, actor: Actor, reveal: Reveal = False) -> dict[str, Any]:
        """One document. A template's name is NAME@VERSION."""
        return shown(_kind(plural), documents.get(_kind(plural), name), actor, reveal)

    @api.get("/api/v1/documents/{plural}/{name}/versions", **answers(list[DocumentVersion], "documents"))
    async def list_document_versions(
        plural: str,
        name: str,
        limit: Limit = None,
        after: Annotated[int, Query(ge=0, description="the last generation of the page before")] = 0,
    ) -> list[dict[str, Any]]:
        """The generations of a document, oldest first: when it changed, and who changed it."""
        return [row for row in await versions.listing(_kind(plural), name) if row["generation"] > after][:limit]

    @api.get("/api/v1/documents/{plural}/{name}/versions/{generation}", **answers(StoredDocument, "documents"))
    async def get_document_version(
        plural: str, name: str, generation: int, actor: Actor, reveal: Reveal = False
    ) -> dict[str, Any]:
        """A document as it was in one generation."""
        return shown(_kind(plural), await versions.get(_kind(plural), name, generation), actor, reveal)

    @api.delete("/api/v1/documents/{plural}/{name}", **answers(models.Applied, "documents"))
    async def delete_document(plural: str, name: str, actor: Actor) -> dict[str, Any]:
        """Delete one document. It must not be in use."""
        applied = await documents.delete(_kind(plural), name, actor=actor)
        return applied_view(applied)

    @api.post("/api/v1/diff", **answers(DiffAnswer, "documents"))
    async def diff_documents(request: ApplyRequest, actor: Actor) -> dict[str, Any]:
        """What applying these documents would change. Changes nothing."""
        return await diffs.diff(((s.source, s.text) for s in request.sources), actor)

    @api.get("/api/v1/documents/{plural}/{name}/orphans", **answers(Orphans, "documents"))
    async def list_orphans(plural: str, name: str) -> dict[str, Any]:
        """Agents that would match nothing if a document were deleted. They would keep their config."""
        return await diffs.orphans(_kind(plural), name)


def _kind(plural: str) -> str:
    if plural not in BY_PLURAL:
        raise NotFound(f"there is no kind {plural}; the kinds are {', '.join(BY_PLURAL)}")
    return BY_PLURAL[plural].name


def applied_view(applied: Applied) -> dict[str, Any]:
    """The result for one document, as JSON."""
    return {
        "kind": applied.kind,
        "name": applied.name,
        "action": applied.action,
        "before": applied.before,
        "after": applied.after,
        "warnings": list(applied.warnings),
    }

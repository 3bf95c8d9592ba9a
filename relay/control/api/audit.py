"""Routes of the audit and the epoch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from pydantic import Field

from relay.control.api.caller import Actor
from relay.control.api.models import AuditCheck, AuditEntry, Epoch, RequestBody, answers
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.audit import Audit
from relay.control.ledger.epoch import raise_epoch as begin_epoch
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_everywhere
from relay.observe import log

_log = log.get("opamp-relay.epoch")
_MAX_INTEGER = (1 << 63) - 1
"""The largest integer that the database can store."""
Moment = Annotated[int | None, Query(ge=0, le=1 << 53, description="Unix milliseconds")]


class EpochRequest(RequestBody):
    """Why nodes must replace manifests that are newer than ours."""

    reason: str = Field(min_length=1, max_length=2000)


def add_audit_routes(api: FastAPI, audit: Audit, ledger: Ledger, fleet: Fleet) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/audit", **answers(list[AuditEntry], "audit"))
    async def list_audit(
        actor_: Actor,
        since_ms: Moment = None,
        until_ms: Moment = None,
        actor: Annotated[str, Query(max_length=256)] = "",
        subject: Annotated[str, Query(max_length=320, description="KIND/NAME, or a prefix of it")] = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        after: Annotated[
            int | None,
            Query(ge=0, le=_MAX_INTEGER, description="number of an entry; returns the entries after it, oldest first"),
        ] = None,
    ) -> list[dict[str, Any]]:
        """The newest entries of the audit, or those after an entry; oldest first."""
        check_everywhere(actor_, "the audit")
        return await audit.listing(
            since_ms=since_ms, until_ms=until_ms, actor=actor, subject=subject, limit=limit, after=after
        )

    @api.get("/api/v1/audit/verify", **answers(AuditCheck, "audit"))
    async def verify_audit() -> dict[str, Any]:
        """Check that the chain of hashes is intact."""
        return await audit.verify()

    @api.get("/api/v1/audit/{number}", **answers(AuditEntry, "audit"))
    async def get_audit_entry(actor: Actor, number: Annotated[int, Path(ge=0, le=_MAX_INTEGER)]) -> dict[str, Any]:
        """One entry of the audit."""
        check_everywhere(actor, "the audit")
        return await audit.get(number)

    @api.post("/api/v1/epoch", **answers(Epoch, "audit"))
    async def raise_epoch(request: EpochRequest, actor: Actor) -> dict[str, Any]:
        """Begin a new epoch: nodes replace the policy of earlier epochs with that of this control plane."""
        epochs = [node.ahead[0] for node in fleet.census.nodes.values() if node.ahead is not None]
        highest = max(epochs, default=0)
        epoch = await ledger.change(actor, lambda state, _: begin_epoch(state, request.reason, beyond=highest))
        _log.warning("epoch_raised", epoch=epoch, reason=request.reason, actor=actor.name)
        return {"epoch": epoch}

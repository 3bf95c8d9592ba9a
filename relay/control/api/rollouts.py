"""Routes of rollouts and of the audit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query
from pydantic import BaseModel, ConfigDict, Field

from relay.control.api.models import AuditCheck, AuditEntry, RolloutAnswer, answers
from relay.control.audit import Audit
from relay.control.documents import ANONYMOUS
from relay.control.rollouts.engine import Rollouts

Actor = Annotated[str, Header(alias="X-OpAMP-Actor", max_length=256, description="who asks; not verified")]
Action = Literal["reject", "pause", "resume", "promote", "rollback", "abort"]


class ApproveRequest(BaseModel):
    """An approval of exactly what has this digest."""

    model_config = ConfigDict(extra="forbid")
    digest: str = Field(min_length=8, max_length=64, description="of the change, or its first digits")


class ActRequest(BaseModel):
    """Something that a person does to a rollout."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=2000)
    stage: int | None = Field(default=None, ge=0, description="to promote: index of the stage that the person saw")


def add_rollout_routes(api: FastAPI, rollouts: Rollouts, audit: Audit) -> None:
    """Put them into the application."""

    @api.get("/api/v1/rollouts", **answers(list[RolloutAnswer], "rollouts"))
    async def list_rollouts() -> list[dict[str, Any]]:
        """What is going on, and the latest rollout of each assignment."""
        return await rollouts.listing()

    @api.get("/api/v1/rollouts/{name}", **answers(RolloutAnswer, "rollouts"))
    async def get_rollout(name: str) -> dict[str, Any]:
        """One rollout."""
        return await rollouts.status(name)

    @api.post("/api/v1/rollouts/{name}/approve", **answers(RolloutAnswer, "rollouts"))
    async def approve_rollout(name: str, request: ApproveRequest, actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Approve a change."""
        return await rollouts.approve(name, actor, request.digest)

    @api.post("/api/v1/rollouts/{name}/retry", **answers(RolloutAnswer, "rollouts"))
    async def retry_rollout(name: str, request: ActRequest, actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Forgive failures and offer again."""
        return await rollouts.retry(name, actor)

    @api.post("/api/v1/rollouts/{name}/{action}", **answers(RolloutAnswer, "rollouts"))
    async def act_on_rollout(
        name: str, action: Action, request: ActRequest, actor: Actor = ANONYMOUS
    ) -> dict[str, Any]:
        """Reject, pause, resume, promote, rollback or abort."""
        return await rollouts.act(name, action, actor, reason=request.reason, stage=request.stage)

    @api.get("/api/v1/assignments/{name}/history", **answers(list[RolloutAnswer], "rollouts"))
    async def list_history(name: str) -> list[dict[str, Any]]:
        """All rollouts of an assignment that are kept, oldest first."""
        return await rollouts.history(name)

    @api.get("/api/v1/audit", **answers(list[AuditEntry], "audit"))
    async def list_audit(
        since_ms: Annotated[int, Query(ge=0, le=1 << 53, description="Unix milliseconds")] = 0,
        actor: Annotated[str, Query(max_length=256)] = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[dict[str, Any]]:
        """The newest entries of the audit, oldest of them first."""
        return await audit.listing(since_ms=since_ms, actor=actor, limit=limit)

    @api.get("/api/v1/audit/verify", **answers(AuditCheck, "audit"))
    async def verify_audit() -> dict[str, Any]:
        """Whether the chain of hashes is whole."""
        return await audit.verify()

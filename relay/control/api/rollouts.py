"""Routes of rollouts, and of the assignments that they change."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header
from pydantic import BaseModel, ConfigDict, Field

from relay.control.api.models import AssignmentView, RolloutAnswer, RolloutDiff, answers
from relay.control.api.pages import After, Limit, behind
from relay.control.documents.apply import ANONYMOUS
from relay.control.engine.rollouts import Rollouts
from relay.control.review.changes import Changes

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


def add_rollout_routes(api: FastAPI, rollouts: Rollouts, changes: Changes) -> None:
    """Put them into the application."""

    @api.get("/api/v1/rollouts", **answers(list[RolloutAnswer], "rollouts"))
    async def list_rollouts(limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """What is going on, and the latest rollout of each assignment."""
        return behind(await rollouts.listing(), after)[:limit]

    @api.get("/api/v1/rollouts/{name}", **answers(RolloutAnswer, "rollouts"))
    async def get_rollout(name: str) -> dict[str, Any]:
        """One rollout; of an assignment's own name the latest."""
        return await rollouts.status(name)

    @api.get("/api/v1/rollouts/{name}/diff", **answers(RolloutDiff, "rollouts"))
    async def diff_rollout(name: str) -> dict[str, Any]:
        """What a rollout changes: values, and the configs that are made of them; secrets are masked."""
        return await changes.of(name)

    @api.get("/api/v1/assignments", **answers(list[AssignmentView], "rollouts"))
    async def list_assignments(limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """What is in force of each assignment, and what was taken back or refused."""
        return behind(rollouts.assignments(), after)[:limit]

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
    async def list_history(name: str, limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """All rollouts of an assignment that are kept, oldest first."""
        return behind(await rollouts.history(name), after)[:limit]

"""Routes of rollouts and assignments."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import Field

from relay.control.api.caller import Actor
from relay.control.api.documents import applied_view
from relay.control.api.models import AssignmentView, RequestBody, RolloutAnswer, RolloutDiff, Undone, answers
from relay.control.api.pages import After, Limit, behind
from relay.control.documents.apply import Documents
from relay.control.engine.actions import Action, Actions
from relay.control.engine.status import Status
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.review.changes import Changes


class UndoRequest(RequestBody):
    """The rollout to go back to."""

    to: str = Field(default="", max_length=200, description="a rollout of the assignment; empty for the one before")


class ApproveRequest(RequestBody):
    """An approval of the change with this digest."""

    digest: str = Field(min_length=8, max_length=64, description="digest of the change, or its first digits")


class ActRequest(RequestBody):
    """An action on a rollout."""

    reason: str = Field(default="", max_length=2000)
    stage: int | None = Field(
        default=None, ge=0, description="for promote: index of the stage to end, as the person saw it"
    )


def add_rollout_routes(
    api: FastAPI,
    status: Status,
    actions: Actions,
    changes: Changes,
    documents: Documents,
    history: History,
    ledger: Ledger,
) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/rollouts", **answers(list[RolloutAnswer], "rollouts"))
    async def list_rollouts(limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """The active rollouts, and the latest rollout of each assignment."""
        return behind(await status.listing(), after)[:limit]

    @api.get("/api/v1/rollouts/{name}", **answers(RolloutAnswer, "rollouts"))
    async def get_rollout(name: str) -> dict[str, Any]:
        """One rollout. An assignment's name stands for its latest rollout."""
        return await status.of(name)

    @api.get("/api/v1/rollouts/{name}/diff", **answers(RolloutDiff, "rollouts"))
    async def diff_rollout(name: str) -> dict[str, Any]:
        """What a rollout changes: values, and the rendered configs. Secrets are masked."""
        return await changes.of(name)

    @api.get("/api/v1/assignments", **answers(list[AssignmentView], "rollouts"))
    async def list_assignments(limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """The revision in force of each assignment, and one that was withdrawn or refused."""
        return behind(status.assignments(), after)[:limit]

    @api.post("/api/v1/rollouts/{name}/approve", **answers(RolloutAnswer, "rollouts"))
    async def approve_rollout(name: str, request: ApproveRequest, actor: Actor) -> dict[str, Any]:
        """Approve a pending change."""
        return await status.of(await actions.approve(name, actor, request.digest))

    @api.post("/api/v1/rollouts/{name}/retry", **answers(RolloutAnswer, "rollouts"))
    async def retry_rollout(name: str, request: ActRequest, actor: Actor) -> dict[str, Any]:
        """Forgive failures, and offer the revision again."""
        return await status.of(await actions.retry(name, actor))

    @api.post("/api/v1/rollouts/{name}/{action}", **answers(RolloutAnswer, "rollouts"))
    async def act_on_rollout(name: str, action: Action, request: ActRequest, actor: Actor) -> dict[str, Any]:
        """Reject, pause, resume, promote, rollback or abort."""
        return await status.of(await actions.act(name, action, actor, reason=request.reason, stage=request.stage))

    @api.post("/api/v1/assignments/{name}/undo", **answers(Undone, "rollouts"))
    async def undo_assignment(name: str, request: UndoRequest, actor: Actor) -> dict[str, Any]:
        """Go back to an earlier revision of an assignment, by a new rollout."""
        earlier = await history.undo_target(name, request.to)
        applied = await documents.apply_revision(name, earlier.candidate, actor=actor)
        return {
            **applied_view(applied),
            "rollout": ledger.state.assignments[name].latest,
            "to": earlier.candidate.title,
        }

    @api.get("/api/v1/assignments/{name}/history", **answers(list[RolloutAnswer], "rollouts"))
    async def list_history(name: str, limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """All stored rollouts of an assignment, oldest first."""
        return behind(await status.history(name), after)[:limit]

"""Notifications, written in the transaction of their change. `engine/notifier` sends them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.ledger.change import Step
from relay.control.rollouts.rollout import RolloutState
from relay.control.storage import schema

_NOTIFIED_STATES = {RolloutState.PAUSED, RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK}


async def add(connection: AsyncConnection, steps: Iterable[Step], now_ms: int) -> None:
    """Write the notifications for steps, in the caller's transaction."""
    rows = [row for step in steps for row in _rows(step, now_ms)]
    if not rows:
        return
    last = (await connection.execute(sa.select(sa.func.max(schema.notices.c.number)))).scalar_one_or_none() or 0
    numbered = [{"number": last + 1 + i, **row} for i, row in enumerate(rows)]
    await connection.execute(sa.insert(schema.notices), numbered)


def _rows(step: Step, now_ms: int) -> list[dict[str, Any]]:
    rollout = step.after
    if rollout.state not in _NOTIFIED_STATES or (step.before is not None and step.before.state is rollout.state):
        return []
    about = f"{rollout.candidate.kind} {rollout.assignment}, stage {rollout.current.name}"
    return [
        {
            "channel": channel,
            "title": f"Rollout {rollout.name}: {rollout.state.value.replace('_', ' ')}",
            "body": f"{about}: {step.reason or rollout.reason}",
            "created_ms": now_ms,
            "attempts": 0,
            "next_ms": now_ms,
        }
        for channel in dict.fromkeys(rollout.strategy.failure_policy.notification)
    ]

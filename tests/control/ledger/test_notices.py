from __future__ import annotations

import sqlalchemy as sa

from relay.control.ledger import notices
from relay.control.ledger.change import Step
from relay.control.rollouts.rollout import RolloutState
from relay.control.storage import schema
from relay.control.storage.database import Database
from tests.control.rollouts.made import rollout, strategy

TOLD = strategy(failure_policy={"notification": ["team", "boss", "team"]})


async def written(database: Database, *steps: Step) -> list[tuple[int, str, str, str]]:
    async with database.write() as connection:
        await notices.add(connection, steps, 5)
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(schema.notices).order_by(schema.notices.c.number))).all()
    return [(row.number, row.channel, row.title, row.body) for row in rows]


async def test_rollback_is_notified_once_per_channel(database: Database) -> None:
    back = Step(rollout(spec=TOLD, state=RolloutState.ROLLING_BACK), rollout(spec=TOLD), reason="3 of 5 failed")
    paused = Step(rollout(spec=TOLD, state=RolloutState.PAUSED, reason="by hand"))
    assert await written(database, back, paused) == [
        (1, "team", "Rollout a-2: rolling back", "ConfigAssignment a, stage canary: 3 of 5 failed"),
        (2, "boss", "Rollout a-2: rolling back", "ConfigAssignment a, stage canary: 3 of 5 failed"),
        (3, "team", "Rollout a-2: paused", "ConfigAssignment a, stage canary: by hand"),
        (4, "boss", "Rollout a-2: paused", "ConfigAssignment a, stage canary: by hand"),
    ]
    assert (await written(database, paused))[-1][0] == 6, "numbers go on"


async def test_steps_without_notices(database: Database) -> None:
    paused = rollout(spec=TOLD, state=RolloutState.PAUSED)
    nobody = rollout(state=RolloutState.PAUSED)
    assert await written(database, Step(rollout(spec=TOLD)), Step(paused, paused), Step(nobody)) == []

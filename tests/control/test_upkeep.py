from __future__ import annotations

import pytest
import sqlalchemy as sa

from relay.control.app import ControlPlane
from relay.control.storage import schema
from relay.errors import StoreError
from relay.testing.clock import ManualClock
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.reports import ONE, up

DAY_S = 86_400


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(programs: Programs, clock: ManualClock) -> ControlPlane:
    return await programs.opened(clock=clock, retention={"history": "30d"})


async def test_expired_history_is_removed(plane: ControlPlane, clock: ManualClock) -> None:
    await apply(plane, TEMPLATE, assignment("a", rate=1))
    await apply(plane, assignment("a", rate=2))
    await plane.publisher.policy("eu")
    clock.advance(29 * DAY_S)
    await plane.upkeep.expire_history()
    assert [r["name"] for r in await plane.status.history("a")] == ["a-1", "a-2"]
    clock.advance(2 * DAY_S)
    await plane.upkeep.expire_history()
    assert [r["name"] for r in await plane.status.history("a")] == ["a-2"], "the latest stays"
    async with plane.database.read() as connection:
        assert (await connection.execute(sa.select(schema.configs))).all() == []


async def test_unwritable_database_does_not_prevent_stopping(plane: ControlPlane) -> None:
    await up(plane.fleet, ONE)
    async with plane.database.write() as connection:
        await connection.execute(sa.text("DROP TABLE nodes"))
    with pytest.raises(StoreError):
        await plane.fleet.save_seen()
    await plane.upkeep.save()
    assert plane.database.problem is not None

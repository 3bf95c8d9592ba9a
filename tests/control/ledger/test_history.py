"""Rollouts by name, including those that ended long ago."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from relay.control.ledger.history import History, find
from relay.control.ledger.ledger import Ledger
from relay.control.rollouts.rollout import RolloutState
from relay.control.rollouts.view import revision_hash
from relay.control.storage.database import Database
from relay.errors import Conflict, NotFound, StoreError
from tests.conftest import TEMPLATE, assignment
from tests.control.actors import ANN
from tests.control.ledger.made import NEEDS, draft


@pytest.fixture
async def history(ledger: Ledger, database: Database) -> History:
    """History of `a`, which had three rates and a pending fourth; `b` does not exist."""
    for i, text in enumerate([TEMPLATE + assignment("a", rate=1), assignment("a", rate=2), assignment("a", rate=3)]):
        await apply(ledger, text, now_ms=i + 1)
    await apply(ledger, assignment("a", rate=4) + NEEDS, now_ms=9)
    return History(database, ledger)


async def apply(ledger: Ledger, text: str, now_ms: int) -> None:
    await ledger.change(ANN, lambda state, _: draft(state, text, now_ms=now_ms).change(None))


async def damage(database: Database, name: str) -> None:
    async with database.write() as connection:
        await connection.execute(sa.text(f"UPDATE rollouts SET body = 'x' || body WHERE name = '{name}'"))


async def test_find_returns_rollouts_that_are_still_relevant(history: History, ledger: Ledger) -> None:
    assert [find(ledger.state, name)[1].name for name in ("a", "a-4", "a-3")] == ["a-4", "a-4", "a-3"]
    with pytest.raises(Conflict, match="a-1 has ended; the latest rollout of ConfigAssignment a is a-4"):
        find(ledger.state, "a-1")
    for name in ("a-9", "b-1", "a-x", "nothing"):
        with pytest.raises(NotFound, match=f"there is no rollout {name}"):
            find(ledger.state, name)


async def test_all_stored_rollouts_are_available(history: History) -> None:
    names = [(await history.get(name)).name for name in ("a", "a-3", "a-1")]
    assert names == ["a-4", "a-3", "a-1"]
    assert [rollout.name for rollout in await history.of("a")] == ["a-1", "a-2", "a-3", "a-4"]
    for name in ("a-9", "b"):
        with pytest.raises(NotFound):
            await history.get(name)


async def test_earlier_revision_of_an_assignment(history: History) -> None:
    assert (await history.undo_target("a")).name == "a-3", "what is asked for has yet to come"
    assert (await history.undo_target("a", "a-1")).name == "a-1"
    with pytest.raises(NotFound, match="there is no assignment b"):
        await history.undo_target("b")
    with pytest.raises(NotFound, match="there is no rollout a-9 of a"):
        await history.undo_target("a", "a-9")


async def test_assignment_without_an_earlier_revision(ledger: Ledger, database: Database) -> None:
    await apply(ledger, TEMPLATE + assignment("a"), now_ms=1)
    with pytest.raises(NotFound, match="has no earlier revision"):
        await History(database, ledger).undo_target("a")


async def test_rollout_is_found_by_any_of_its_hashes(history: History) -> None:
    second = await history.get("a-2")
    assert await history.by_hash(second.digest[:12]) == (second, second.candidate)
    assert await history.by_hash(revision_hash(second.candidate) or "") == (second, second.candidate)
    assert await history.by_hash("0" * 12) is None
    await history.expire(3)
    third = await history.get("a-3")
    assert await history.by_hash(revision_hash(second.candidate) or "") == (third, third.stable)


async def test_long_ended_rollouts_expire(history: History) -> None:
    await history.expire(1 << 60)
    assert [rollout.name for rollout in await history.of("a")] == ["a-3", "a-4"]


async def test_damaged_rollout_does_not_affect_others(history: History, database: Database) -> None:
    await damage(database, "a-1")
    with pytest.raises(StoreError, match="table rollouts: a-1 is damaged"):
        await history.stored("a-1")
    assert [rollout.state for rollout in await history.of("a")] == [
        RolloutState.COMPLETED,
        RolloutState.COMPLETED,
        RolloutState.PENDING_APPROVAL,
    ]

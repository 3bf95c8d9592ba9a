"""The state in the database: it is restored whole, and damaged rows are named by table and key."""

from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa

from relay.control.ledger import rows
from relay.control.ledger.change import Change, Removal, Step
from relay.control.ledger.revise import revise
from relay.control.ledger.state import State
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.errors import StoreError
from tests.conftest import TEMPLATE, assignment
from tests.control.ledger.made import NEEDS, draft, terms, with_package
from tests.control.texts import TWO_STAGES, staged, variables
from tests.packages import package_assignment


async def stored(database: Database, before: State, change: Change[None]) -> State:
    """Write a change and return the state read back."""
    async with database.write() as connection:
        await rows.store(connection, before, change, "ann", 7)
    async with database.read() as connection:
        return await rows.load(connection)


async def filled(database: Database) -> State:
    """Store and return a state with one of everything."""
    pushed = with_package(State())
    await stored(database, State(), Change(pushed, None))
    change = draft(
        pushed, TEMPLATE, TWO_STAGES, staged(1), variables("eu", "{level: warn}"), package_assignment()
    ).change(None)
    state = dataclasses.replace(change.state, prefetches={"eu": frozenset({"1" * 64})}, epoch=4)
    assert await stored(database, pushed, dataclasses.replace(change, state=state)) == state
    return state


async def test_state_round_trip(database: Database) -> None:
    state = await filled(database)
    waits = draft(state, staged(2) + NEEDS).change(None)
    assert await stored(database, state, waits) == waits.state
    ahead = dataclasses.replace(
        waits.state, prefetches={"eu": frozenset({"1" * 64}), "us": frozenset({"1" * 64, "2" * 64})}
    )
    assert await stored(database, waits.state, Change(ahead, None)) == ahead
    less = dataclasses.replace(ahead, prefetches={"us": frozenset({"2" * 64})})
    assert await stored(database, ahead, Change(less, None)) == less


async def test_deleted_assignment_keeps_its_numbers(database: Database) -> None:
    state = await filled(database)
    catalog = state.catalog.without("ConfigAssignment", "a").without("RegionVariables", "eu")
    after = revise(state, catalog, terms(), by="ann", now_ms=8).change(None)
    read = await stored(database, state, after)
    assert read == after.state
    assert read.deleted_assignments == {"a": (1, 0)}
    again = revise(read, read.catalog.without("ConfigTemplate", "basic@v1"), terms(), by="ann", now_ms=9).change(None)
    assert (await stored(database, read, again)).deleted_assignments == {"a": (1, 0)}
    packages = again.state.catalog.without("PackageAssignment", "agents").without_package("otelcol@1")
    last = revise(again.state, packages, terms(), by="ann", now_ms=9).change(None)
    assert not (await stored(database, again.state, last)).catalog.packages


async def test_only_differences_are_written(database: Database) -> None:
    state = await filled(database)
    change = draft(state, assignment("b", priority=1)).change(None)
    async with database.read() as connection:
        before = (await connection.execute(sa.select(schema.documents.c.key, schema.documents.c.updated_ms))).all()
    async with database.write() as connection:
        await connection.execute(sa.update(schema.documents).values(updated_ms=1))
    await stored(database, state, change)
    async with database.read() as connection:
        after = dict((await connection.execute(sa.select(schema.documents.c.key, schema.documents.c.updated_ms))).all())
    assert after == {**dict.fromkeys((row.key for row in before), 1), "b": 7}


async def test_other_removals_share_the_transaction(database: Database) -> None:
    node = {"region": "eu", "name": "one", "trusted": "[]", "software_version": "1", "last_seen_ms": 1}
    async with database.write() as connection:
        await replace(connection, schema.nodes, [node])
    state = State()
    await stored(database, state, Change(state, None, removals=[Removal(schema.nodes, [node])]))
    async with database.read() as connection:
        assert (await connection.execute(sa.select(schema.nodes))).all() == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE documents SET body = 'x' || body WHERE key = 'a'", "documents: ConfigAssignment a is damaged"),
        (
            "UPDATE documents SET key = 'b' WHERE key = 'a'",
            "documents: ConfigAssignment b holds ConfigAssignment a: it is damaged",
        ),
        ("UPDATE documents SET kind = 'Nonsense' WHERE key = 'a'", "Nonsense a in the database cannot be read"),
        ("UPDATE packages SET version = '9'", "packages: otelcol 9 holds otelcol@1: it is damaged"),
        ("UPDATE assignments SET name = 'b' WHERE name = 'a'", "assignments: a is damaged"),
        ("UPDATE rollouts SET name = 'a-9' WHERE name = 'a-1'", "rollouts: a-9 is damaged"),
        ("UPDATE rollouts SET body = 'x' || body WHERE name = 'a-1'", "rollouts: a-1 is damaged"),
        (
            "UPDATE contents SET name = 'RegionVariables/eu@00' WHERE name LIKE 'RegionVariables/%'",
            "contents: RegionVariables/eu@00 is damaged",
        ),
    ],
)
async def test_damaged_row_is_named(database: Database, statement: str, said: str) -> None:
    await filled(database)
    async with database.write() as connection:
        await connection.execute(sa.text(statement))
    with pytest.raises(StoreError, match=said):
        async with database.read() as connection:
            await rows.load(connection)


async def test_damaged_unused_rollout_is_ignored(database: Database) -> None:
    state = await filled(database)
    (step,) = [s for s in draft(state, staged(2)).change(None).steps if s.after.name == "a-2"]
    await stored(database, state, Change(state, None, steps=[Step(step.after)]))
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE rollouts SET body = 'x' || body WHERE name = 'a-2'"))
    async with database.read() as connection:
        assert await rows.load(connection) == state


async def test_epoch_is_at_least_the_published_one(database: Database) -> None:
    state = await filled(database)
    async with database.write() as connection:
        row = {"region": "eu", "body": '{"region": "eu", "epoch": 9, "number": 1, "digest": ""}'}
        await replace(connection, schema.manifests, [row])
    async with database.read() as connection:
        assert (state.epoch, (await rows.load(connection)).epoch) == (4, 9)

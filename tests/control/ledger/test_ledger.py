"""A change is both stored and in force, or neither."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import sqlalchemy as sa

from relay.control.access.actor import SYSTEM, Actor
from relay.control.access.roles import Grant, Grants, Role
from relay.control.ledger.audit import Audit
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.draft import Draft
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.storage.database import Database
from relay.errors import Conflict, Forbidden, StoreError
from relay.testing.clock import ManualClock
from tests.conftest import TEMPLATE, assignment
from tests.control.actors import ANN
from tests.control.conftest import NOW_MS
from tests.control.ledger.made import draft


def raised(state: State, now_ms: int) -> Change[int]:
    epoch = state.epoch + 1
    entries = [Entry("raise-epoch", f"Epoch/{epoch}")]
    return Change(dataclasses.replace(state, epoch=epoch), now_ms, entries=entries)


async def test_change_is_stored_audited_and_in_force(ledger: Ledger, database: Database, clock: ManualClock) -> None:
    woken = asyncio.Event()
    ledger.watch(woken)
    assert await ledger.change(ANN, raised) == NOW_MS
    assert (ledger.state.epoch, ledger.edition, woken.is_set()) == (2, 1, True)
    (entry,) = await Audit(database).listing()
    assert (entry["actor"], entry["action"], entry["subject"]) == ("ann", "raise-epoch", "Epoch/2")
    again = Ledger(database, clock=clock)
    await again.load()
    assert again.state == ledger.state
    woken.clear()
    ledger.unwatch(woken)
    await ledger.change(ANN, raised)
    assert not woken.is_set()


async def test_concurrent_changes_are_serialized(ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.change(ANN, raised) for _ in range(5)))
    assert (ledger.state.epoch, ledger.edition) == (6, 5)


async def test_unchanged_state_is_not_written(ledger: Ledger, database: Database) -> None:
    before = ledger.state
    assert await ledger.change(ANN, lambda state, _: Change(state, "unchanged")) == "unchanged"
    assert (ledger.state, ledger.edition, await Audit(database).listing()) == (before, 0, [])


async def test_failed_change_is_not_in_force(ledger: Ledger, database: Database) -> None:
    before = ledger.state

    def refused(state: State, now_ms: int) -> Change[None]:
        raise Conflict("no")

    with pytest.raises(Conflict):
        await ledger.change(ANN, refused)
    async with database.write() as connection:
        await connection.execute(sa.text("DROP TABLE audit"))
    with pytest.raises(StoreError):
        await ledger.change(ANN, raised)
    assert (ledger.state, ledger.edition) == (before, 0)


async def test_quiet_step_wakes_no_watcher(ledger: Ledger, database: Database) -> None:
    await ledger.change(ANN, lambda state, _: draft(state, TEMPLATE, assignment("a")).change(None))
    entries = await Audit(database).listing()
    assert [entry["subject"] for entry in entries] == ["Rollout/a-1"]
    woken = asyncio.Event()
    ledger.watch(woken)

    def observed(state: State, _: int) -> Change[None]:
        made = Draft(state)
        held = state.assignments["a"]
        assert held.rollout is not None
        looked_at = dataclasses.replace(held.rollout, observed_s=5.0)
        made.assignments["a"] = dataclasses.replace(held, rollout=looked_at)
        made.add_step(looked_at, quiet=True)
        return made.change(None)

    await ledger.change(SYSTEM, observed)
    rollout = ledger.state.assignments["a"].rollout
    assert rollout is not None
    assert (rollout.observed_s, woken.is_set(), ledger.edition) == (5.0, False, 1)
    assert await Audit(database).listing() == entries


async def test_record_changes_nothing(ledger: Ledger, database: Database) -> None:
    woken = asyncio.Event()
    ledger.watch(woken)
    await ledger.record(ANN, [Entry("denied", "POST /api/v1/apply")])
    assert [entry["action"] for entry in await Audit(database).listing()] == ["denied"]
    assert (woken.is_set(), ledger.edition) == (False, 0)


async def test_what_is_not_allowed_is_not_stored(ledger: Ledger) -> None:
    bob = Actor("bob", grants=Grants((Grant(Role.AUTHOR, {"team": "a"}),)))
    with pytest.raises(Forbidden):
        await ledger.change(bob, lambda state, _: draft(state, TEMPLATE, assignment("a")).change(None))
    assert ledger.state == State()

"""Fixtures: a control plane, or a part of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.control.app import ControlPlane
from relay.control.fleet.fleet import Fleet
from relay.control.keys.trust import Trust
from relay.control.ledger.ledger import Ledger
from relay.control.regions.archive import Archive
from relay.control.secrets.vault import Vault
from relay.control.storage.database import Database
from relay.observe.metrics import ControlPlaneMetrics
from relay.testing.clock import ManualClock
from tests.conftest import Programs

NOW_MS = 10 * 86_400_000
"""The initial time of the clock."""


@pytest.fixture
async def plane(programs: Programs) -> ControlPlane:
    """A control plane without background tasks."""
    return await programs.opened()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_MS)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "rooms" / "database")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def ledger(database: Database, clock: ManualClock) -> Ledger:
    made = Ledger(database, clock=clock)
    await made.load()
    return made


@pytest.fixture
async def trust(ledger: Ledger, clock: ManualClock, tmp_path: Path) -> Trust:
    made = Trust(ledger, Vault(tmp_path / "rooms" / "keys"), tmp_path / "rooms" / "keys", clock=clock)
    await made.load()
    return made


@pytest.fixture
async def fleet(database: Database, ledger: Ledger, clock: ManualClock) -> Fleet:
    made = Fleet(database, ledger, Archive(database), clock=clock, metrics=ControlPlaneMetrics())
    await made.load()
    return made

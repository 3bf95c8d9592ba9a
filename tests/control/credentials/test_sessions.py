from __future__ import annotations

import pytest

from relay.auth.openid import Person
from relay.auth.secrets import SESSION_FORM, digest_of
from relay.control.credentials import sessions as module
from relay.control.credentials.sessions import SessionRegistry
from relay.control.ledger.audit import Audit
from relay.control.ledger.ledger import Ledger
from relay.control.storage.database import Database
from relay.errors import Conflict, NotFound
from relay.testing.clock import ManualClock
from tests.control.actors import ANN

ALICE, BOB = Person("https://idp|1", "alice", ("ops",)), Person("https://idp|2", "bob", ())


async def test_session_begins_and_ends(ledger: Ledger, database: Database, clock: ManualClock) -> None:
    registry = SessionRegistry(ledger, 60)
    session, secret = await registry.begin(ALICE, address="192.0.2.1")
    assert SESSION_FORM.fits(secret)
    assert ledger.state.sessions[session.id].digest == digest_of(secret)
    assert session.expires_ms == clock.unix_ms() + 60_000
    again = Ledger(database, clock=clock)
    await again.load()
    assert again.state.sessions == ledger.state.sessions
    await registry.end(session.id, actor=ANN)
    with pytest.raises(NotFound):
        await registry.end(session.id, actor=ANN)
    entries = await Audit(database).listing()
    assert [(e["action"], e["actor"], e["address"]) for e in entries if e["action"] == "login"] == [
        ("login", "alice", "192.0.2.1")
    ]
    assert secret not in str(entries)


async def test_oldest_session_of_one_person_goes(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS_OF_ONE", 2)
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    registry = SessionRegistry(ledger, 60)
    ids = []
    for _ in range(3):
        ids.append((await registry.begin(ALICE, address=""))[0].id)
        clock.advance(1)
    assert list(ledger.state.sessions) == ids[1:]
    await registry.begin(BOB, address="")
    with pytest.raises(Conflict, match="3 sessions, the maximum"):
        await registry.begin(Person("https://idp|3", "eve", ()), address="")
    clock.advance(60)
    await registry.forget_expired(clock.unix_ms())
    assert ledger.state.sessions == {}
    await registry.forget_expired(clock.unix_ms())

from __future__ import annotations

import pytest

from relay.auth.secrets import SecretForm, digest_of
from relay.control.access.actor import Actor
from relay.control.access.roles import Grant, Grants, Role
from relay.control.credentials import keys as module
from relay.control.credentials.keys import KeyRegistry, KeyRequest
from relay.control.ledger.audit import Audit
from relay.control.ledger.ledger import Ledger
from relay.control.storage.database import Database
from relay.errors import Conflict, Forbidden, NotFound, Refused
from relay.testing.clock import ManualClock
from tests.control.actors import ANN
from tests.control.conftest import NOW_MS

FORM = SecretForm("opamp_")
AGENT = KeyRequest("agent-001", True, {"team": "a"}, ["us", "eu", "eu"])
DAY_S = 86_400.0


@pytest.fixture
def registry(ledger: Ledger) -> KeyRegistry:
    return KeyRegistry(ledger, FORM, expires_s=90 * DAY_S)


async def test_key_is_made_once_and_only_its_digest_kept(
    registry: KeyRegistry, ledger: Ledger, database: Database
) -> None:
    key, secret = await registry.create(AGENT, actor=ANN)
    assert FORM.fits(secret)
    assert key == registry.keys.find(key.id)
    assert (key.digest, key.subject, key.regions) == (digest_of(secret), "agent-001", ("eu", "us"))
    assert key.expires_ms == NOW_MS + 90 * 86_400_000
    (entry,) = await Audit(database).listing()
    assert (entry["actor"], entry["action"], entry["subject"]) == ("ann", "create", f"ApiKey/{key.id}")
    again = Ledger(database, clock=ManualClock(NOW_MS))
    await again.load()
    assert again.state.api_keys.get(key.id) == key
    assert secret.encode() not in b"".join(p.read_bytes() for p in database._path.parent.iterdir() if p.is_file())


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (KeyRequest("", True), "subject"),
        (KeyRequest("a" * 257, True), "subject"),
        (KeyRequest("a\n", True), "subject"),
        (KeyRequest("a", True, {"region": "eu"}), "labels"),
        (KeyRequest("a", True, {str(n): "x" for n in range(33)}), "labels"),
    ],
)
async def test_odd_keys_are_refused(registry: KeyRegistry, request_: KeyRequest, path: str) -> None:
    with pytest.raises(Refused) as caught:
        await registry.create(request_, actor=ANN)
    assert caught.value.problems[0].path == path
    assert len(registry.keys) == 0


async def test_rotation_keeps_the_subject_and_ends_the_old_key(registry: KeyRegistry, clock: ManualClock) -> None:
    old, _ = await registry.create(AGENT, actor=ANN)
    clock.advance(DAY_S)
    fresh, _ = await registry.rotate(old.id, 60, actor=ANN)
    replaced = registry.keys.find(old.id)
    assert (fresh.subject, fresh.labels, fresh.regions) == (old.subject, old.labels, old.regions)
    assert fresh.expires_ms == clock.unix_ms() + 90 * 86_400_000
    assert replaced.replaced_by == fresh.id
    assert replaced.refused_from_ms == clock.unix_ms() + 60_000
    with pytest.raises(Conflict, match=f"was replaced by {fresh.id}"):
        await registry.rotate(old.id, 60, actor=ANN)
    with pytest.raises(NotFound):
        await registry.rotate("key-0000000000", 60, actor=ANN)


async def test_overlap_never_lengthens_a_life(registry: KeyRegistry, clock: ManualClock) -> None:
    old, _ = await registry.create(KeyRequest("a", True, expires_s=10), actor=ANN)
    await registry.rotate(old.id, DAY_S, actor=ANN)
    assert registry.keys.find(old.id).refused_from_ms == old.refused_from_ms
    ended, _ = await registry.create(KeyRequest("b", True, expires_s=10), actor=ANN)
    clock.advance(71)
    with pytest.raises(Conflict, match="has expired"):
        await registry.rotate(ended.id, 0, actor=ANN)


async def test_deletion_and_what_ended_long_ago(registry: KeyRegistry, clock: ManualClock) -> None:
    one, _ = await registry.create(AGENT, actor=ANN)
    two, _ = await registry.create(KeyRequest("b", True, expires_s=60), actor=ANN)
    assert registry.expiring(clock.unix_ms(), 3_600_000) == 1
    await registry.delete(one.id, actor=ANN)
    with pytest.raises(NotFound):
        await registry.delete(one.id, actor=ANN)
    clock.advance(29 * DAY_S)
    await registry.forget_expired(clock.unix_ms(), actor=ANN)
    assert two.id in registry.keys
    clock.advance(2 * DAY_S)
    await registry.forget_expired(clock.unix_ms(), actor=ANN)
    assert len(registry.keys) == 0
    await registry.forget_expired(clock.unix_ms(), actor=ANN)


async def test_keys_are_bounded(registry: KeyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 1)
    await registry.create(AGENT, actor=ANN)
    with pytest.raises(Conflict, match="1 API keys, the maximum"):
        await registry.create(AGENT, actor=ANN)


async def test_attack_key_for_agents_outside_the_scope(registry: KeyRegistry) -> None:
    eve = Actor("eve", grants=Grants((Grant(Role.OPERATOR, {"team": "a"}),)))
    await registry.create(AGENT, actor=eve)
    with pytest.raises(Forbidden):
        await registry.create(KeyRequest("x", True, {"team": "b"}), actor=eve)
    theirs, _ = await registry.create(KeyRequest("x", True, {"team": "b"}), actor=ANN)
    for attempt in (registry.rotate(theirs.id, 0, actor=eve), registry.delete(theirs.id, actor=eve)):
        with pytest.raises(Forbidden):
            await attempt


async def test_attack_key_that_proves_an_agent_outside_the_scope(ledger: Ledger) -> None:
    eve = Actor("eve", grants=Grants((Grant(Role.OPERATOR, {"team": "a"}),)))
    known = {"agent-b": [{"team": "b"}], "agent-a": [{"team": "a"}]}
    registry = KeyRegistry(ledger, FORM, expires_s=60, labels_of=lambda name: known.get(name, []))
    await registry.create(KeyRequest("fleet-b", False, {"team": "b"}), actor=ANN)
    for name in ("agent-b", "fleet-b"):
        with pytest.raises(Forbidden, match=f"{name} is known outside your scope"):
            await registry.create(KeyRequest(name, True, {"team": "a"}), actor=eve)
    await registry.create(KeyRequest("agent-a", True, {"team": "a"}), actor=eve)
    await registry.create(KeyRequest("agent-b", True, {"team": "a"}), actor=ANN)

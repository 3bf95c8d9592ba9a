"""The keys of a control plane, with a real database and without sockets."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.auth.key_sets import accept, read, sign
from relay.auth.signing import Purpose, key_id, public_bytes
from relay.control.keys.downloads import download_key
from relay.control.keys.trust import ROOT_FILE, Trust
from relay.control.ledger.ledger import Ledger
from relay.control.secrets.vault import FILE, Vault
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.trust.rotation import FORMER_DOWNLOADS, Proposal, Rotation
from relay.errors import Conflict, StoreError
from relay.testing.clock import ManualClock
from tests.control.actors import ANN


async def loaded(database: Database, folder: Path, clock: ManualClock) -> Trust:
    """As after a restart."""
    ledger = Ledger(database, clock=clock)
    await ledger.load()
    trust = Trust(ledger, Vault(folder), folder, clock=clock)
    await trust.load()
    return trust


def root_of(folder: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key((folder / ROOT_FILE).read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "rooms" / "keys"


@pytest.fixture
def root(trust: Trust, folder: Path) -> Ed25519PrivateKey:
    return root_of(folder)


async def rotate(trust: Trust, rotation: Rotation, *roots: Ed25519PrivateKey) -> Proposal:
    public = public_bytes(roots[-1]) if rotation is Rotation.ROOT else b""
    proposal = await trust.propose(rotation, root=public, actor=ANN)
    await trust.adopt(rotation, [sign(read(p), root) for p in proposal.payloads for root in roots], actor=ANN)
    return proposal


def manifest_key(trust: Trust) -> str:
    signed = trust.sign_manifest(b"m")
    assert signed is not None
    assert signed.is_by(Purpose.MANIFEST, trust.current.manifests)
    assert not signed.is_by(Purpose.FRESHNESS, trust.current.manifests)
    return signed.key


async def test_keys_are_made_once_and_the_root_is_never_read(
    trust: Trust, database: Database, folder: Path, clock: ManualClock
) -> None:
    assert accept(trust.key_sets, held=None, root=trust.root) == trust.current
    root = folder / ROOT_FILE
    assert root.stat().st_mode & 0o777 == 0o600
    root.unlink()
    again = await loaded(database, folder, clock)
    assert (again.current, again.root, again.authorities) == (trust.current, trust.root, trust.authorities)
    assert manifest_key(again) == manifest_key(trust)
    assert not root.exists()
    state = trust._ledger.state
    assert again.download_keys(state, "eu") == trust.download_keys(state, "eu"), "addresses that were given stay good"


async def test_database_without_its_master_key_does_not_start(
    trust: Trust, database: Database, folder: Path, tmp_path: Path, clock: ManualClock
) -> None:
    (folder / FILE).write_bytes(b"1" * 32)
    with pytest.raises(StoreError, match=r"master\.key is not the one that belongs to this database"):
        await loaded(database, folder, clock)
    content = database._path.read_bytes() + database._path.with_name(database._path.name + "-wal").read_bytes()
    assert b"PRIVATE KEY" not in content


async def test_key_sets_that_cannot_be_used(trust: Trust, database: Database, folder: Path, clock: ManualClock) -> None:
    async with database.write() as connection:
        await connection.execute(sa.update(schema.facts).where(schema.facts.c.name == "key-sets").values(value="[{}]"))
    with pytest.raises(StoreError, match="the key sets in the database cannot be used"):
        await loaded(database, folder, clock)


async def test_root_that_cannot_be_written(ledger: Ledger, clock: ManualClock, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trust = Trust(ledger, Vault(tmp_path / "keys"), tmp_path / "file", clock=clock)
    with pytest.raises(StoreError, match=r"root\.pem"):
        await trust.load()


@pytest.mark.parametrize(
    ("table", "reason"), [(schema.facts, "facts is damaged"), (schema.secrets, "secret ca-key is gone")]
)
async def test_attack_half_of_the_keys_gone(
    trust: Trust, database: Database, folder: Path, clock: ManualClock, table: sa.Table, reason: str
) -> None:
    root = (folder / ROOT_FILE).read_bytes()
    async with database.write() as connection:
        await connection.execute(sa.delete(table))
    with pytest.raises(StoreError, match=reason):
        await loaded(database, folder, clock)
    assert (folder / ROOT_FILE).read_bytes() == root


async def test_root_of_another_database_is_not_overwritten(ledger: Ledger, clock: ManualClock, tmp_path: Path) -> None:
    (tmp_path / ROOT_FILE).write_text("precious")
    with pytest.raises(StoreError, match="is of another database: move it away"):
        await Trust(ledger, Vault(tmp_path), tmp_path, clock=clock).load()
    assert (tmp_path / ROOT_FILE).read_text() == "precious"
    assert ledger.state.keys.key_sets == ()


async def test_download_secret_that_was_readable_is_made_anew(
    database: Database, folder: Path, clock: ManualClock
) -> None:
    async with database.write() as connection:
        await connection.execute(sa.insert(schema.secrets), [{"name": "download-keys", "value": b"r" * 32}])
    trust = await loaded(database, folder, clock)
    state = trust._ledger.state
    assert trust.download_keys(state, "eu") != [download_key(b"r" * 32, "eu")]
    async with database.write() as connection:  # of a folder that had no CA yet, and lost its master key
        await connection.execute(sa.update(schema.secrets).values(value=b"\x01" + bytes(60)))
        await connection.execute(sa.delete(schema.secrets).where(schema.secrets.c.name != "download-keys"))
        await connection.execute(sa.delete(schema.facts))
    (folder / ROOT_FILE).unlink()
    again = await loaded(database, folder, clock)
    assert len(again.download_keys(again._ledger.state, "eu")) == 1


# ---- rotations


async def test_manifest_key_is_replaced_and_nodes_can_tell(trust: Trust, root: Ed25519PrivateKey) -> None:
    first, chain = manifest_key(trust), trust.chain
    await rotate(trust, Rotation.MANIFEST, root)
    assert trust.current.version == 2
    assert manifest_key(trust) != first
    assert list(trust.current.manifests) == [manifest_key(trust)], "a key that was stolen is no longer good"
    assert chain.extended(trust.key_sets).current == trust.current


async def test_ca_is_trusted_before_it_is_used_and_the_old_one_goes_last(
    trust: Trust, root: Ed25519PrivateKey, database: Database, folder: Path, clock: ManualClock
) -> None:
    (old,) = trust.current.authorities
    proposal = await rotate(trust, Rotation.CA, root)
    assert [read(payload).version for payload in proposal.payloads] == [2, 3]
    new, kept = trust.current.authorities
    assert kept == old
    assert trust.server_authority(all_trust_newest=False) == old
    assert trust.server_authority(all_trust_newest=True) == new
    assert trust.server_issuer(all_trust_newest=False).server(["cp"], 1e9, 60).certificate
    again = await loaded(database, folder, clock)
    assert (bool(again.closing), again.rotated_ms) == (True, clock.unix_ms())
    await again.close(again.closing)
    assert again.current.authorities == (new,)
    assert again._ledger.state.keys.closing == ()
    assert again.server_authority(all_trust_newest=False) == new
    assert accept(again.key_sets, held=None, root=again.root).version == 3


async def test_rotations_during_one_of_the_ca_carry_its_end(trust: Trust, root: Ed25519PrivateKey) -> None:
    (old,) = trust.current.authorities
    await rotate(trust, Rotation.CA, root)
    await rotate(trust, Rotation.MANIFEST, root)
    second = manifest_key(trust)
    await rotate(trust, Rotation.CA, root)
    authorities = trust.current.authorities
    assert len(authorities) == 3
    assert trust.server_authority(all_trust_newest=False) == old, "the one in between is not trusted everywhere yet"
    await trust.close(trust.closing)
    assert len(trust.current.authorities) == 1
    assert list(trust.current.manifests) == [second]
    assert trust.current.version == 5


async def test_root_is_replaced_by_both(trust: Trust, root: Ed25519PrivateKey) -> None:
    first, fresh = trust.root, Ed25519PrivateKey.generate()
    with pytest.raises(Conflict, match="not signed by a root"):
        await rotate(trust, Rotation.ROOT, fresh)
    await rotate(trust, Rotation.ROOT, root, fresh)
    assert trust.root != first
    assert accept(trust.key_sets, held=None, root=first) == trust.current, "nodes that joined before"
    assert accept(trust.key_sets, held=None, root=trust.root) == trust.current, "nodes that join from now on"
    with pytest.raises(Conflict, match="not signed by a root"):
        await rotate(trust, Rotation.MANIFEST, root)
    await rotate(trust, Rotation.MANIFEST, fresh)


async def test_what_was_not_proposed_is_not_taken(trust: Trust, root: Ed25519PrivateKey) -> None:
    with pytest.raises(Conflict, match="waits for a signature"):
        await trust.adopt(Rotation.CA, [], actor=ANN)
    first = await trust.propose(Rotation.MANIFEST, actor=ANN)
    with pytest.raises(Conflict, match="waits for a signature"):
        await trust.adopt(Rotation.CA, [], actor=ANN)
    await trust.propose(Rotation.MANIFEST, actor=ANN)
    with pytest.raises(Conflict, match="somebody else began a rotation"):
        await trust.adopt(Rotation.MANIFEST, [sign(read(p), root) for p in first.payloads], actor=ANN)
    assert trust.current.version == 1
    manifest_key(trust)


async def test_download_addresses_of_the_former_secret_are_good_to_their_end(trust: Trust, clock: ManualClock) -> None:
    ledger = trust._ledger
    (former,) = trust.download_keys(ledger.state, "eu")
    await trust.rotate_downloads(actor=ANN)
    fresh, kept = trust.download_keys(ledger.state, "eu")
    assert (kept, fresh != former) == (former, True)
    await trust.forget_former(clock.unix_ms() + 25 * 3_600_000)
    assert len(trust.download_keys(ledger.state, "eu")) == 2
    await trust.forget_former(clock.unix_ms() + 27 * 3_600_000)
    assert trust.download_keys(ledger.state, "eu") == [fresh]
    assert FORMER_DOWNLOADS not in ledger.state.keys.secrets


async def test_master_key_is_replaced(trust: Trust, database: Database, folder: Path, clock: ManualClock) -> None:
    before, state = (folder / FILE).read_bytes(), trust._ledger.state
    await trust.rotate_master(actor=ANN)
    assert (folder / FILE).read_bytes() != before
    assert trust._ledger.state.keys.secrets.keys() == state.keys.secrets.keys()
    assert trust._ledger.state.keys.secrets != state.keys.secrets
    again = await loaded(database, folder, clock)
    assert again.download_keys(again._ledger.state, "eu") == trust.download_keys(state, "eu")
    assert manifest_key(again) == manifest_key(trust)


async def test_master_key_is_replaced_during_a_rotation_of_the_ca(
    trust: Trust, root: Ed25519PrivateKey, database: Database, folder: Path, clock: ManualClock
) -> None:
    await rotate(trust, Rotation.CA, root)
    await trust.rotate_downloads(actor=ANN)
    await trust.propose(Rotation.MANIFEST, actor=ANN)
    await trust.rotate_master(actor=ANN)
    again = await loaded(database, folder, clock)
    again.server_issuer(all_trust_newest=False)
    assert len(again.download_keys(again._ledger.state, "eu")) == 2
    proposal = again._ledger.state.keys.proposal
    assert proposal is not None
    await again.adopt(Rotation.MANIFEST, [sign(read(p), root) for p in proposal.payloads], actor=ANN)
    manifest_key(again)


@pytest.mark.parametrize("other", ["ca", "downloads", "master"])
async def test_master_key_is_replaced_beside_other_rotations(
    trust: Trust, root: Ed25519PrivateKey, database: Database, folder: Path, clock: ManualClock, other: str
) -> None:
    async def beside() -> None:
        if other == "ca":
            await rotate(trust, Rotation.CA, root)
        elif other == "downloads":
            await trust.rotate_downloads(actor=ANN)
        else:
            await trust.rotate_master(actor=ANN)

    await asyncio.gather(trust.rotate_master(actor=ANN), beside())
    for keys in (trust, await loaded(database, folder, clock)):
        assert keys.download_keys(keys._ledger.state, "eu")
        keys.issuer.server(["cp"], 1e9, 60)
        manifest_key(keys)


async def test_cancelled_request_does_not_interrupt_a_replacement(
    trust: Trust, database: Database, folder: Path, clock: ManualClock
) -> None:
    rotating = asyncio.ensure_future(trust.rotate_master(actor=ANN))
    await asyncio.sleep(0)
    rotating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rotating
    await trust.rotate_master(actor=ANN)
    manifest_key(await loaded(database, folder, clock))


async def test_rotation_that_is_closed_is_the_one_that_was_looked_at(trust: Trust, root: Ed25519PrivateKey) -> None:
    await rotate(trust, Rotation.CA, root)
    closing = trust.closing
    await rotate(trust, Rotation.CA, root)
    await trust.close(closing)
    assert len(trust.current.authorities) == 3, "nobody has the newest one yet"
    await trust.close(())


async def test_downloads_are_replaced_once_the_former_addresses_have_ended(trust: Trust, clock: ManualClock) -> None:
    await trust.rotate_downloads(actor=ANN)
    clock.advance(25 * 3600)
    with pytest.raises(Conflict, match="agents have addresses of the former secret until"):
        await trust.rotate_downloads(actor=ANN)
    clock.advance(2 * 3600)
    await trust.rotate_downloads(actor=ANN)


@pytest.mark.parametrize("is_stored", [False, True])
async def test_crash_during_the_first_start(
    ledger: Ledger, database: Database, folder: Path, clock: ManualClock, is_stored: bool
) -> None:
    vault = Vault(folder)
    if is_stored:
        await Trust(ledger, vault, folder, clock=clock).load()
        (folder / ROOT_FILE).rename(folder / "root.pem.new")
        before = (folder / "root.pem.new").read_bytes()
    else:
        (folder / "root.pem.new").write_bytes(b"of a start that was killed")
    trust = await loaded(database, folder, clock)
    assert trust.root == key_id(public_bytes(root_of(folder)))
    assert not (folder / "root.pem.new").exists()
    assert not is_stored or (folder / ROOT_FILE).read_bytes() == before


async def test_cas_are_bounded(trust: Trust, root: Ed25519PrivateKey) -> None:
    for _ in range(7):
        await rotate(trust, Rotation.CA, root)
    with pytest.raises(Conflict, match="8 CAs are trusted already"):
        await trust.propose(Rotation.CA, actor=ANN)

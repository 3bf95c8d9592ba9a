"""Makes all keys anew while the control plane is stopped, where the master key is lost."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.aio.clock import Clock
from relay.auth.key_sets import KeyChain, read, sign
from relay.auth.signing import key_id, public_bytes
from relay.control.access.actor import SYSTEM
from relay.control.keys.downloads import SECRET_BYTES
from relay.control.keys.trust import ROOT_FILE
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.secrets.vault import FILE as MASTER_FILE
from relay.control.secrets.vault import Vault
from relay.control.storage.database import FILE, Database
from relay.control.trust.certificates import new_authority
from relay.control.trust.rotation import CA, DOWNLOADS, FORMER_CA, MANIFEST, Keys, Proposal, Rotation, following
from relay.errors import Conflict, StoreError


async def rekey(data_dir: Path, keys_dir: Path, root: Ed25519PrivateKey | None, *, clock: Clock) -> int:
    """Replace the master key and all keys that it encrypted. Tokens, agents' keys and revocations stay.

    Args:
        root: signs the new key set; None to make a new root too at the next start: nodes must then join again.

    Returns:
        Version of the key set that nodes will be given; 0 with a new root.

    Raises:
        StoreError: the database or the folder of the keys cannot be used.
        Conflict: `root` is not the root of this control plane, or there is one although none is given.
    """
    database = Database(data_dir / FILE)
    try:
        await database.open()
        ledger = Ledger(database, clock=clock)
        await ledger.load()
        if root is None:
            if (keys_dir / ROOT_FILE).exists():
                raise Conflict(f"{keys_dir / ROOT_FILE} is there: give it with --root-key, so that nodes stay")
            await ledger.change(SYSTEM, _forgotten)
            _set_aside(keys_dir)
            return 0
        known = ledger.state.keys.key_sets
        current = KeyChain.of(known).current if known else None
        if current is None or key_id(public_bytes(root)) not in current.roots:
            raise Conflict("--root-key is not the root of this control plane")
        _set_aside(keys_dir)
        keys = _renewed(ledger.state.keys, root, Vault(keys_dir), clock.unix_ms())
        entry = Entry("rotate", f"KeySet/{current.version + 1}", reason="rekey")
        await ledger.change(
            SYSTEM, lambda state, _: Change(dataclasses.replace(state, keys=keys), None, entries=[entry])
        )
        return read(keys.key_sets[-1].payload).version
    finally:
        await database.close()


def _set_aside(keys_dir: Path) -> None:
    """Keep the master key that does not fit, in case that it does elsewhere."""
    for name in (MASTER_FILE, f"{MASTER_FILE}.new"):
        file = keys_dir / name
        try:
            if file.exists():
                file.replace(_free_name(file.with_name(f"{name}.old")))
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror}") from None


def _free_name(file: Path) -> Path:
    numbered = (file.with_name(f"{file.name}{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([file], numbered) if not name.exists())


def _renewed(keys: Keys, root: Ed25519PrivateKey, vault: Vault, now_ms: int) -> Keys:
    current = KeyChain.of(keys.key_sets).current
    authority, manifest = new_authority(current.trust_domain, now_ms / 1000), Ed25519PrivateKey.generate()
    public = public_bytes(manifest)
    payloads = following(current, manifests={key_id(public): public}, authority=authority.certificate.decode())
    secrets = {CA: authority.key, MANIFEST: manifest.private_bytes_raw(), DOWNLOADS: os.urandom(SECRET_BYTES)}
    sealed = {name: vault.seal(name, secret) for name, secret in secrets.items()}
    without = dataclasses.replace(keys, secrets={})  # nobody can open them
    signed = [sign(read(payload), root) for payload in payloads]
    proposed = without.with_proposal(Proposal(Rotation.CA, payloads), sealed)
    adopted = proposed.adopted(Rotation.CA, signed, now_ms)
    assert FORMER_CA not in adopted.secrets
    return adopted


def _forgotten(state: State, _: int) -> Change[None]:
    entry = Entry("forget", "KeySet", reason="rekey with a new root: all nodes join again")
    return Change(dataclasses.replace(state, keys=Keys(), joined_nodes={}), None, entries=[entry])

"""The keys of a control plane: made at its first start with TLS on the link.

The root key signs which CAs nodes trust. It is written to `root.pem` and never read again: whoever holds it should move it
away. The CA's key is in the database, encrypted with the master key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from relay.auth.key_sets import KeySet, Signed, accept, key_id, sign
from relay.control.secrets.vault import Vault
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import read_undamaged
from relay.control.trust.certificates import Issuer, Pair, new_authority
from relay.errors import StoreError
from relay.observe import log
from relay.store.private import write_private

_log = log.get("opamp-relay.trust")
ROOT_FILE = "root.pem"
_AUTHORITY = "ca-key"
_KEY_SETS = "key-sets"
_DOMAIN_DIGITS = 16


class Trust:
    """The key sets of this control plane, and its CA. Call `load` first.

    Args:
        folder: where `root.pem` is written at first.
    """

    def __init__(self, database: Database, vault: Vault, folder: Path) -> None:
        self._database = database
        self._vault = vault
        self._folder = folder
        self.key_sets: Sequence[Signed] = ()
        """All key sets with their signatures, oldest first."""

    async def load(self, now: float) -> None:
        """Load the keys, or make them.

        Args:
            now: Unix seconds.

        Raises:
            StoreError: they cannot be read, or not be stored.
        """
        async with self._database.read() as connection:
            facts = await read_undamaged(connection, schema.facts, schema.facts.c.name == _KEY_SETS)
            secrets = await read_undamaged(connection, schema.secrets, schema.secrets.c.name == _AUTHORITY)
        if bool(facts) != bool(secrets):
            missing = "the key sets" if secrets else "the CA's key"
            raise StoreError(
                f"table {'facts' if secrets else 'secrets'} is damaged: {missing} is gone: restore a backup"
            )
        if facts and secrets:
            try:
                self.key_sets = [Signed.from_plain(item) for item in json.loads(facts[0].value)]
                current = accept(self.key_sets, held=None)
            except ValueError as error:
                raise StoreError(f"the key sets in the database cannot be used: {error}") from None
            key = self._vault.open(_AUTHORITY, secrets[0].value)
        else:
            current, key = await self._make(now)
        self.current: KeySet = current
        self.root = next(iter(self.key_sets)).key
        """Id of the root that signed the first key set."""
        self.issuer = Issuer(Pair(current.authorities[0].encode(), key), current.trust_domain)

    async def _make(self, now: float) -> tuple[KeySet, bytes]:
        root = Ed25519PrivateKey.generate()
        public = root.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        trust_domain = f"opamp-{key_id(public)[:_DOMAIN_DIGITS]}"
        authority = new_authority(trust_domain, now)
        key_set = KeySet(1, trust_domain, {key_id(public): public}, (authority.certificate.decode(),))
        self.key_sets = [sign(key_set, root)]
        file = self._folder / ROOT_FILE
        if file.exists():
            raise StoreError(f"{file} is of another database: move it away, or restore that database")
        try:
            write_private(file, root.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror}") from None
        sealed = self._vault.seal(_AUTHORITY, authority.key)
        stored = json.dumps([item.plain() for item in self.key_sets])
        async with self._database.write() as connection:
            await connection.execute(sa.insert(schema.secrets), [{"name": _AUTHORITY, "value": sealed}])
            await connection.execute(sa.insert(schema.facts), [{"name": _KEY_SETS, "value": stored}])
        _log.warning("root_key_written", file=str(file), consequence="move it away: this control plane never reads it")
        return key_set, authority.key

    @property
    def authorities(self) -> bytes:
        """Certificates of the CAs, PEM."""
        return self.current.bundle.encode()


async def has_authority(database: Database) -> bool:
    """Whether the database has the key of a CA, which only its own master key can open.

    Raises:
        StoreError: it cannot be read.
    """
    async with database.read() as connection:
        names = sa.select(schema.secrets.c.name).where(schema.secrets.c.name == _AUTHORITY)
        return (await connection.execute(names)).first() is not None

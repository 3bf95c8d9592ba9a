"""The keys that sign each region's download addresses, all derived from one secret."""

from __future__ import annotations

import hashlib
import hmac
import os

from relay.control.secrets.vault import Vault
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.control.storage.sealed import read_undamaged
from relay.errors import StoreError
from relay.observe import log

_log = log.get("opamp-relay.publish")
_MASTER = "download-keys"
_KEY_BYTES = 32


async def master_key(database: Database, vault: Vault) -> bytes:
    """The secret that all of them are derived from. Makes it on first use, and anew if it cannot be decrypted.

    Until then agents download by addresses that are no longer accepted; they are offered new ones at once.

    Raises:
        StoreError: it is damaged, or cannot be stored.
    """
    async with database.write() as connection:
        rows = await read_undamaged(connection, schema.secrets, schema.secrets.c.name == _MASTER)
        if rows and len(rows[0].value) != _KEY_BYTES:  # earlier releases stored it as it is
            try:
                return vault.open(_MASTER, rows[0].value)
            except StoreError as error:
                _log.warning("download_keys_replaced", reason=str(error))
        secret = os.urandom(_KEY_BYTES)
        await replace(connection, schema.secrets, [{"name": _MASTER, "value": vault.seal(_MASTER, secret)}])
        return secret


def download_key(master: bytes, region: str) -> bytes:
    """The key of one region."""
    return hmac.new(master, region.encode(), hashlib.sha256).digest()

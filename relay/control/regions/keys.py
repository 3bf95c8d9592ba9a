"""The keys that sign each region's download addresses, all derived from one secret."""

from __future__ import annotations

import hashlib
import hmac
import os

import sqlalchemy as sa

from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.sealed import read_undamaged

_MASTER = "download-keys"
_KEY_BYTES = 32


async def master_key(database: Database) -> bytes:
    """The master secret. Creates it on first use.

    Raises:
        StoreError: it is damaged, or cannot be stored.
    """
    async with database.write() as connection:
        rows = await read_undamaged(connection, schema.secrets, schema.secrets.c.name == _MASTER)
        if rows and rows[0].value:
            return bytes(rows[0].value)
        secret = os.urandom(_KEY_BYTES)
        await connection.execute(sa.insert(schema.secrets), [{"name": _MASTER, "value": secret}])
        return secret


def download_key(master: bytes, region: str) -> bytes:
    """The key of one region."""
    return hmac.new(master, region.encode(), hashlib.sha256).digest()

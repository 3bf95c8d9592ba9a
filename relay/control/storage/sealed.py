"""Columns whose values carry a digest. Databases do not notice a flipped byte, and a damaged value must not be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.errors import StoreError
from relay.ids import sha256

_DIGEST_BYTES = 8


class Damaged(StoreError):
    """A value differs from what was written."""


def seal_text(value: str) -> str:
    """The value, prefixed with its digest."""
    return sha256(value.encode()).hex()[: 2 * _DIGEST_BYTES] + value


def seal_bytes(value: bytes) -> bytes:
    """The value, prefixed with its digest."""
    return sha256(value)[:_DIGEST_BYTES] + value


class SealedText(sa.TypeDecorator[str]):
    """Text, prefixed with its digest."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Add the digest."""
        return None if value is None else seal_text(value)

    def process_result_value(self, value: Any, dialect: Any) -> str | None:
        """Check and strip the digest. Raises Damaged."""
        if value is None:
            return None
        text = str(value)[2 * _DIGEST_BYTES :]
        if seal_text(text) != value:
            raise Damaged("a value has changed since it was written")
        return text


class SealedBytes(sa.TypeDecorator[bytes]):
    """Bytes, prefixed with their digest."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Any) -> bytes | None:
        """Add the digest."""
        return None if value is None else seal_bytes(value)

    def process_result_value(self, value: Any, dialect: Any) -> bytes | None:
        """Check and strip the digest. Raises Damaged."""
        if value is None:
            return None
        content = bytes(value)[_DIGEST_BYTES:]
        if seal_bytes(content) != value:
            raise Damaged("a value has changed since it was written")
        return content


async def read_all(
    connection: AsyncConnection,
    table: sa.Table,
    *where: sa.ColumnElement[bool],
    columns: Sequence[sa.Column[Any]] = (),
) -> tuple[list[Any], list[str]]:
    """All undamaged rows, and the keys of the damaged ones.

    Args:
        columns: the columns to read; empty for all.
    """
    select = sa.select(*columns) if columns else sa.select(table)
    try:
        return list((await connection.execute(select.where(*where))).all()), []
    except (Damaged, UnicodeDecodeError, sa.exc.DBAPIError) as error:
        if isinstance(error, sa.exc.DBAPIError) and not _is_decode_error(error):
            raise
    keys = list(table.primary_key.columns)
    good, bad = [], []
    for key in (await connection.execute(sa.select(*keys).where(*where))).all():
        query = select.where(*(column == value for column, value in zip(keys, key, strict=True)))
        try:
            good.append((await connection.execute(query)).one())
        except (Damaged, UnicodeDecodeError, sa.exc.DBAPIError):
            bad.append(" ".join(value.hex() if isinstance(value, bytes) else str(value) for value in key))
    return good, bad


def _is_decode_error(error: sa.exc.DBAPIError) -> bool:
    """Whether a text column contains bytes that are not text."""
    return "decode" in str(error).lower()


async def read_undamaged(connection: AsyncConnection, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[Any]:
    """All rows of a table that match `where`; none may be damaged.

    Raises:
        StoreError: a row is damaged.
    """
    rows, bad = await read_all(connection, table, *where)
    if bad:
        raise StoreError(
            f"table {table.name}: {', '.join(bad[:5])} is damaged: restore a backup (opamp-relay database restore)"
        )
    return rows

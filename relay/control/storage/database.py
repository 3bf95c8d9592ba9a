"""The database: connections, migrations, and one writer at a time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from relay.errors import StoreError

_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """The control plane's database.

    Writes are serialised here, so that a transaction on SQLite never meets another one half-way.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path.parent}: {error.strerror}") from error
        self._path = path
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 10})
        self._writing = asyncio.Lock()
        sa.event.listen(self._engine.sync_engine, "connect", _on_connect)

    async def open(self) -> None:
        """Bring the schema up to date.

        Raises:
            StoreError: no database, or one of a later version.
        """
        try:
            async with self._engine.begin() as connection:
                await connection.run_sync(_migrate)
        except (SQLAlchemyError, sqlite3.Error, CommandError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading.

        Raises:
            StoreError: the database failed.
        """
        try:
            async with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(str(error.__cause__ or error)) from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        async with self._writing:
            try:
                async with self._engine.begin() as connection:
                    yield connection
            except SQLAlchemyError as error:
                raise StoreError(str(error.__cause__ or error)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


async def replace(connection: AsyncConnection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, taking the place of those with the same primary keys: in words that every database knows."""
    if not rows:
        return
    await remove(connection, table, rows)
    await connection.execute(sa.insert(table), rows)


async def remove(connection: AsyncConnection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Delete the rows with the primary keys of `rows`."""
    keys = list(table.primary_key.columns)
    if len(keys) == 1:
        await connection.execute(sa.delete(table).where(keys[0].in_([row[keys[0].name] for row in rows])))
        return
    for row in rows:
        await connection.execute(sa.delete(table).where(*(key == row[key.name] for key in keys)))


def _on_connect(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

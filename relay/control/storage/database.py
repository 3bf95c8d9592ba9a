"""The database: connections, migrations, and one writer at a time."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from relay.aio.tasks import run_to_completion
from relay.control.storage import schema
from relay.control.storage.rows import replace
from relay.errors import StoreError
from relay.store.lock import FolderLock

FILE = "control-plane.sqlite3"
"""The file name in the data folder."""
_PROBE_CHARS = 1 << 18
_MIGRATIONS = Path(__file__).parent / "migrations"


class _Connection(AsyncConnection):
    """Runs each step to its end: if one were cancelled midway, the driver's thread would keep the lock."""

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await run_to_completion(super().execute(*args, **kwargs), name="database-execute")

    async def start(self, is_ctxmanager: bool = False) -> AsyncConnection:
        try:
            return await run_to_completion(super().start(is_ctxmanager), name="database-start")
        except asyncio.CancelledError:
            with contextlib.suppress(SQLAlchemyError):  # the transaction never began
                await self.close()
            raise

    async def commit(self) -> None:
        await run_to_completion(super().commit(), name="database-commit")

    async def rollback(self) -> None:
        await run_to_completion(super().rollback(), name="database-rollback")

    async def close(self) -> None:
        await run_to_completion(super().close(), name="database-close")


class Database:
    """The control plane's database.

    Serialises writes, so that SQLite transactions never conflict.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FolderLock(path.parent, path)
        self._files: dict[str, tuple[int, int]] = {}
        """File name suffix → (device, inode) of the open database and its write-ahead log."""
        self._anchor: sqlite3.Connection | None = None
        """Never used. An open connection keeps the log in place, so a missing log means that somebody removed it."""
        self._probed = 0
        self.problem: str | None = None
        """Why the last write failed, or why writes are refused; None while all is well."""
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 10})
        self._writing = asyncio.Lock()
        self._replaced_message = (
            f"{path} or its -wal file was replaced or deleted while open: stop, restore a backup, and start again"
        )
        sa.event.listen(self._engine.sync_engine, "connect", _on_connect)

    async def open(self) -> None:
        """Lock the folder, check the file for damage, and migrate its schema.

        Raises:
            StoreError: the file is not a database, is damaged or of a later version, or another process uses the folder.
        """
        self._lock.take()
        try:
            async with self._engine.connect() as connection:
                result = (await connection.execute(sa.text("PRAGMA quick_check(1)"))).scalar_one()
            if result != "ok":
                raise StoreError(f"{self._path}: damaged ({_line(result)}): restore a backup")
            async with self._engine.begin() as connection:
                await connection.run_sync(_migrate)
            self._anchor = sqlite3.connect(self._path, check_same_thread=False)
            self._anchor.execute("SELECT count(*) FROM sqlite_master").fetchone()
            self._was_replaced()
        except BaseException as error:
            await self.close()
            if isinstance(error, CommandError | SQLAlchemyError | sqlite3.Error):
                raise StoreError(f"{self._path}: {_reason(error)}") from error
            raise

    def _was_replaced(self) -> bool:
        """Whether an open file was replaced or deleted."""
        for suffix in ("", "-wal"):
            identity: tuple[int, int] | None = None
            with contextlib.suppress(OSError):
                status = self._path.with_name(self._path.name + suffix).stat()
                identity = status.st_dev, status.st_ino
            if identity is not None:
                self._files.setdefault(suffix, identity)
            if self._files.get(suffix) != identity:
                return True
        return False

    async def probe(self) -> None:
        """Check that the file is still the one that was opened, and is writable. Sets `problem`. Call it periodically."""
        if self._was_replaced():
            self.problem = self._replaced_message
            return
        # After a failed write, probe with a large row: a small one may fit where the next report does not.
        self._probed += 1
        row = {"name": "probe", "value": str(self._probed).ljust(_PROBE_CHARS if self.problem else 0)}
        with contextlib.suppress(StoreError):
            async with self.write() as connection:
                await replace(connection, schema.facts, [row])

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading.

        Raises:
            StoreError: the database failed.
        """
        try:
            async with _Connection(self._engine) as connection:
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
            if self._files and self._was_replaced():
                self.problem = self._replaced_message
                raise StoreError(self.problem)
            try:
                async with _Connection(self._engine) as connection:
                    try:
                        yield connection
                    except BaseException:
                        await connection.rollback()
                        raise
                    await connection.commit()
            except SQLAlchemyError as error:
                self.problem = _line(error.__cause__ or error)
                # A connection opened while the file was read-only stays read-only: start with new ones.
                await self._engine.dispose()
                raise StoreError(self.problem) from error
            self.problem = None

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None
        self._lock.release()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _on_connect(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


@contextlib.contextmanager
def migrated(path: Path) -> Iterator[sa.Connection]:
    """Migrate a database file that nobody has open, and yield a transaction on it. Blocks.

    Raises:
        StoreError: it is not our database, or was written by a later version.
    """
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            _migrate(connection)
            yield connection
    except (CommandError, SQLAlchemyError) as error:
        raise StoreError(f"{path}: {_reason(error)}") from error
    finally:
        engine.dispose()


def _reason(error: Exception) -> str:
    if isinstance(error, CommandError) and "locate revision" in str(error):
        return "the data was written by a later version: upgrade, or use another data folder"
    return _line(error.__cause__ or error)


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""One SQLite file: buckets of keys → bytes, written by one thread in groups.

`put` never waits: writes gather in memory, the latest of each key wins, and the writer commits all that has gathered in
one transaction. A write that fails (disk full) stays in memory and is tried again; `problem` says so meanwhile. `commit`
is for what must be on disk before it counts. With WAL and synchronous=NORMAL a killed process loses nothing committed;
a machine that loses power may lose the last commits, never the file.

Every value carries a digest of itself and its key: SQLite does not notice one bad byte. What does not fit is not given.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relay.errors import StoreError

_SCHEMA_VERSION = 2
_WITHOUT_DIGESTS = 1
"""The layout before."""
_DIGEST_BYTES = 8
_TABLE = (
    "CREATE TABLE IF NOT EXISTS entries"
    " (bucket TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (bucket, key)) WITHOUT ROWID"
)
_LAST_TRY_S = 5.0
"""How long what waits is tried to be written at the end."""
_LAST_PAUSE_S = 0.25
_GATHER_S = 0.02
_RETRY_S = 1.0

Writes = dict[tuple[str, bytes], bytes | None]


class LocalStore:
    """The store of one process. Reads (`load`, `get`) are for start-up and rare requests; they block.

    On a disk that is full or cannot be written it begins with what can be read; writes wait in memory, see `problem`.

    Raises:
        StoreError: the folder is not this user's to use, or another process has the file.
    """

    def __init__(self, path: Path) -> None:
        self.set_aside: Path | None = None
        """Where a file that was corrupt went, if one was found at opening."""
        self.problem: str | None = None
        """Why the last write failed; None while all is well."""
        self.failures = 0
        self.damaged: dict[tuple[str, bytes], None] = {}
        """(bucket, key) of what was not as it was written, until it is written anew."""
        self.lost = 0
        """Writes that could not be made before the end."""
        self._unopened: Path | None = None
        """The file, while it cannot be opened for writing."""
        try:
            self._database = self._begin(path)
        except PermissionError as error:
            reason = f"this user may not use the folder ({error.strerror})"
            raise StoreError(f"{path.parent}: {reason}") from error
        except (OSError, sqlite3.Error) as error:
            hint = (
                " (another process is using it: each process needs its own data folder)"
                if "locked" in str(error)
                else ""
            )
            raise StoreError(f"{path}: {error}{hint}") from error
        self._guard = threading.Lock()
        self._reading = threading.Lock()
        self._wake = threading.Event()
        self._pending: Writes = {}
        self._in_flight: Writes = {}
        """What the writer is at: newer than the disk, older than what waits."""
        self._commits: list[tuple[Writes, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._flushes: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closing = False
        self._last_try = 0.0
        """When the last try to write at the end ends; 0 before the end."""
        self._thread = threading.Thread(target=self._write_loop, name="store-writer", daemon=True)
        self._thread.start()

    def _begin(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK | os.X_OK) and not _is_read_only(path.parent):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return self._open(path)
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_of_the_disk(error):
                raise
            self.problem, self._unopened = str(error), path
            return _readable(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not str(error).startswith("no such column"):
                raise  # locked, unreadable: not the file's content
        # Keep the evidence under another name and start empty: the control plane and the agents know it all again.
        self.set_aside = path.with_name(f"{path.name}.corrupt-{time.time_ns() // 1_000_000}")
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                os.replace(part, self.set_aside.with_name(self.set_aside.name + suffix))
        return _connect(path)

    # ---- reading

    def load(self, bucket: str) -> list[tuple[bytes, bytes]]:
        """All entries of a bucket as they are on disk. What is damaged is left out, and dropped; see `damaged`.

        Raises:
            StoreError: they cannot be read.
        """
        found = []
        for key, stored in self._query("SELECT key, CAST(value AS BLOB) FROM entries WHERE bucket = ?", bucket):
            value = self._unsealed(bucket, bytes(key), bytes(stored))
            if value is not None:
                found.append((bytes(key), value))
        return found

    def _unsealed(self, bucket: str, key: bytes, stored: bytes) -> bytes | None:
        value = _unseal(bucket, key, stored)
        if value is None:
            self.put(bucket, key, None)
            self.damaged[bucket, key] = None
        return value

    def keys(self, bucket: str) -> list[bytes]:
        """All keys of a bucket as they are on disk.

        Raises:
            StoreError: they cannot be read.
        """
        return [row[0] for row in self._query("SELECT key FROM entries WHERE bucket = ?", bucket)]

    def _query(self, query: str, *values: object) -> list[Any]:
        try:
            with self._reading:
                return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """One entry: as it waits to be written, else as it is on disk; None if there is none.

        Raises:
            StoreError: it cannot be read.
        """
        with self._guard:
            for writes in (self._pending, self._in_flight):
                if (bucket, key) in writes:
                    return writes[bucket, key]
        rows = self._query("SELECT CAST(value AS BLOB) FROM entries WHERE bucket = ? AND key = ?", bucket, key)
        return self._unsealed(bucket, key, bytes(rows[0][0])) if rows else None

    # ---- writing

    def clear(self) -> None:
        """Forget everything, at once. For start-up; blocks.

        Raises:
            StoreError: nothing was forgotten.
        """
        if self._unopened is not None:
            raise StoreError(f"{self._unopened}: cannot be written, so nothing in it can be deleted: {self.problem}")
        with self._guard:
            self._pending.clear()
        try:
            with self._reading:
                self._database.execute("DELETE FROM entries")
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def forgive(self, bucket: str) -> None:
        """All of a bucket was written anew: what was damaged of it is no loss any more."""
        for entry in [entry for entry in self.damaged if entry[0] == bucket]:
            del self.damaged[entry]

    def put(self, bucket: str, key: bytes, value: bytes | None) -> None:
        """Write soon; None deletes. Never waits, never fails: see `problem`."""
        with self._guard:
            self._pending[bucket, key] = value
        if self.damaged and value is not None:
            self.damaged.pop((bucket, key), None)
        if not self._wake.is_set():  # it takes a lock: ten times what this question costs
            self._wake.set()

    async def commit(self, bucket: str, entries: Mapping[bytes, bytes | None]) -> None:
        """Write all of `entries` in one transaction, or nothing.

        Raises:
            StoreError: nothing was written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._guard:
            writes: Writes = {(bucket, key): value for key, value in entries.items()}
            for entry in writes:
                self._pending.pop(entry, None)  # older than this, and would be written after it
            self._commits.append((writes, loop, done))
        self._wake.set()
        await done
        for key, value in entries.items():
            if value is not None:
                self.damaged.pop((bucket, key), None)

    async def flush(self) -> None:
        """Wait until all that was `put` is on disk.

        Raises:
            StoreError: it could not be written; it stays in memory.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._guard:
            self._flushes.append((loop, done))
        self._wake.set()
        await done

    def close(self) -> None:
        """Write what waits, and close. Blocks for as long as that takes; what cannot be written within seconds is `lost`."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._database.close()

    # ---- the writer's thread

    def _write_loop(self) -> None:
        while True:
            try:
                if self._write_once():
                    return
            except Exception as error:  # whatever it is: without a writer nothing would ever be stored again
                self.problem = f"the writer failed: {error!r}"
                self.failures += 1
                with self._guard:
                    self._pending = self._in_flight | self._pending
                    self._in_flight = {}
                if self._closing and self._gives_up():
                    return
                self._wake.wait(_RETRY_S)

    def _write_once(self) -> bool:
        """Write what waits. True at the end."""
        self._wake.wait(_RETRY_S if self.problem else None)
        if not self._closing:
            time.sleep(_GATHER_S)
        self._wake.clear()
        with self._guard:
            pending, self._pending = self._pending, {}
            self._in_flight = pending
            commits, self._commits = self._commits, []
            flushes, self._flushes = self._flushes, []
        failed = None
        for writes, loop, done in commits:
            failed = self._transaction(writes)
            _resolve(loop, done, failed)
        reopens = self._unopened is not None
        error = self._transaction(pending) if pending or reopens else None
        if commits or pending or reopens:
            self.problem = str(error or failed) if error or failed else None
        with self._guard:
            self._in_flight = {}
            if error:
                self._pending = pending | self._pending
        for loop, done in flushes:
            _resolve(loop, done, error)
        if not self._closing:
            return False
        if not self._pending:
            return True
        if self._gives_up():
            return True
        self._wake.set()
        time.sleep(_LAST_PAUSE_S)
        return False

    def _gives_up(self) -> bool:
        """At the end: whether what cannot be written was tried for long enough."""
        self._last_try = self._last_try or time.monotonic() + _LAST_TRY_S
        if time.monotonic() < self._last_try:
            return False
        self.lost = len(self._pending)
        return True

    def _transaction(self, writes: Writes) -> Exception | None:
        removed = [key for key, value in writes.items() if value is None]
        written = [(*key, _seal(*key, value)) for key, value in writes.items() if value is not None]
        with self._reading:
            try:
                if self._unopened is not None:
                    self._reopen(self._unopened)
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", written)
                self._database.executemany("DELETE FROM entries WHERE bucket = ? AND key = ?", removed)
                self._database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self.failures += 1
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                return error
        return None

    def _reopen(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = _connect(path)
        self._database.close()
        self._database, self._unopened = opened, None


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether it is the disk that cannot be written, and not that the file is not ours."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN"))


def _readable(path: Path) -> sqlite3.Connection:
    """What can be read of a file that cannot be written, in memory: nothing where there is none."""
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    memory.execute(_TABLE)
    # Without the log where that cannot be opened either: what it has is the newest, but better old than nothing.
    for options in ("mode=ro", "immutable=1"):
        if not path.exists():
            break
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?{options}", uri=True)) as held:
                if held.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
                    break
                rows = held.execute("SELECT bucket, key, value FROM entries").fetchall()
        except sqlite3.Error:
            continue
        memory.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        break
    return memory


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the file does not pass its own check")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise sqlite3.OperationalError(
                f"the data was written by a later version (layout {version}, this one knows {_SCHEMA_VERSION}): upgrade, or"
                " use another data folder"
            )
        database.execute(_TABLE)
        database.execute("SELECT bucket, key, value FROM entries LIMIT 0")
        if version == _WITHOUT_DIGESTS:
            _add_digests(database)
        if version != _SCHEMA_VERSION:  # else nothing is written: the disk may be full
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def _add_digests(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    rows = database.execute("SELECT bucket, key, value FROM entries").fetchall()
    sealed = [(bucket, key, _seal(bucket, bytes(key), bytes(value))) for bucket, key, value in rows]
    database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", sealed)
    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    database.execute("COMMIT")


def _digest(bucket: str, key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join((bucket.encode(), key, value)), digest_size=_DIGEST_BYTES).digest()


def _seal(bucket: str, key: bytes, value: bytes) -> bytes:
    return _digest(bucket, key, value) + value


def _unseal(bucket: str, key: bytes, stored: bytes) -> bytes | None:
    """The value; None where it is not what was written."""
    value = stored[_DIGEST_BYTES:]
    return value if stored[:_DIGEST_BYTES] == _digest(bucket, key, value) else None


def _resolve(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], error: Exception | None) -> None:
    def settle() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(StoreError(str(error)))

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)

"""One SQLite file: buckets of keys → bytes, written in batches by one thread.

`put` never waits: writes gather in memory, the latest of each key wins, and the writer commits them in one transaction. A
write that fails (disk full) stays in memory and is retried; meanwhile `problem` has the reason. Use `commit` for data that
must be on disk before the caller goes on. With WAL and synchronous=NORMAL a killed process loses no committed data; a power
failure may lose the last commits but never corrupts the file.

Every value is stored with a digest of itself and its key, since SQLite does not detect a bad byte. Damaged values are
never returned.
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
"""The previous layout."""
_DIGEST_BYTES = 8
_TABLE = (
    "CREATE TABLE IF NOT EXISTS entries"
    " (bucket TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (bucket, key)) WITHOUT ROWID"
)
_LAST_TRY_S = 5.0
"""How long `close` keeps retrying."""
_LAST_PAUSE_S = 0.25
_GATHER_S = 0.02
_RETRY_S = 1.0

Writes = dict[tuple[str, bytes], bytes | None]


class LocalStore:
    """The store of one process. Reads (`load`, `get`) block; they are for start-up and rare requests.

    If the disk is full or read-only, the store opens with what it can read and keeps writes in memory; see `problem`.

    Raises:
        StoreError: this user may not use the folder, or another process has the file open.
    """

    def __init__(self, path: Path) -> None:
        self.corrupt_copy: Path | None = None
        """Where a corrupt file was moved when the store was opened; None if there was none."""
        self.problem: str | None = None
        """Why the last write failed; None if it succeeded."""
        self.failures = 0
        self.damaged: dict[tuple[str, bytes], None] = {}
        """(bucket, key) of damaged entries, until they are written again."""
        self.lost = 0
        """Writes that `close` gave up."""
        self._unopened_path: Path | None = None
        """The file, while it cannot be opened for writing."""
        try:
            self._database = self._open_or_read(path)
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
        """Being written now: newer than the disk, older than `_pending`."""
        self._commits: list[tuple[Writes, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._flushes: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closing = False
        self._give_up_at = 0.0
        """When `close` stops retrying (monotonic); 0 before the first failure."""
        self._thread = threading.Thread(target=self._write_loop, name="store-writer", daemon=True)
        self._thread.start()

    def _open_or_read(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK | os.X_OK) and not _is_read_only(path.parent):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return self._open(path)
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_disk_error(error):
                raise
            self.problem, self._unopened_path = str(error), path
            return _read_into_memory(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not str(error).startswith("no such column"):
                raise  # locked or unreadable: the content is not to blame
        # Keep the corrupt file under another name and start empty: the control plane and the agents will send it all again.
        self.corrupt_copy = path.with_name(f"{path.name}.corrupt-{time.time_ns() // 1_000_000}")
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                os.replace(part, self.corrupt_copy.with_name(self.corrupt_copy.name + suffix))
        return _connect(path)

    # ---- reading

    def load(self, bucket: str) -> list[tuple[bytes, bytes]]:
        """Read all entries of a bucket from disk. Damaged entries are skipped and deleted; see `damaged`.

        Raises:
            StoreError: the entries cannot be read.
        """
        entries = []
        for key, stored in self._query("SELECT key, CAST(value AS BLOB) FROM entries WHERE bucket = ?", bucket):
            value = self._intact_value(bucket, bytes(key), bytes(stored))
            if value is not None:
                entries.append((bytes(key), value))
        return entries

    def _intact_value(self, bucket: str, key: bytes, stored: bytes) -> bytes | None:
        value = _unseal(bucket, key, stored)
        if value is None:
            self.put(bucket, key, None)
            self.damaged[bucket, key] = None
        return value

    def keys(self, bucket: str) -> list[bytes]:
        """Read all keys of a bucket from disk.

        Raises:
            StoreError: the keys cannot be read.
        """
        return [row[0] for row in self._query("SELECT key FROM entries WHERE bucket = ?", bucket)]

    def _query(self, query: str, *values: object) -> list[Any]:
        try:
            with self._reading:
                return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """Get one entry, from pending writes or from disk; None if there is none.

        Raises:
            StoreError: the entry cannot be read.
        """
        with self._guard:
            for writes in (self._pending, self._in_flight):
                if (bucket, key) in writes:
                    return writes[bucket, key]
        rows = self._query("SELECT CAST(value AS BLOB) FROM entries WHERE bucket = ? AND key = ?", bucket, key)
        return self._intact_value(bucket, key, bytes(rows[0][0])) if rows else None

    # ---- writing

    def clear(self) -> None:
        """Delete everything. For start-up; blocks.

        Raises:
            StoreError: nothing was deleted.
        """
        if self._unopened_path is not None:
            raise StoreError(f"{self._unopened_path}: cannot delete anything, the file is not writable: {self.problem}")
        with self._guard:
            self._pending.clear()
        try:
            with self._reading:
                self._database.execute("DELETE FROM entries")
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def clear_damaged(self, bucket: str) -> None:
        """Clear the bucket's `damaged` entries, after the whole bucket was written again."""
        for entry in [entry for entry in self.damaged if entry[0] == bucket]:
            del self.damaged[entry]

    def put(self, bucket: str, key: bytes, value: bytes | None) -> None:
        """Write soon; None deletes. Never waits and never fails; see `problem`."""
        with self._guard:
            self._pending[bucket, key] = value
        if self.damaged and value is not None:
            self.damaged.pop((bucket, key), None)
        if not self._wake.is_set():  # it takes a lock: ten times what this question costs
            self._wake.set()

    async def commit(self, bucket: str, entries: Mapping[bytes, bytes | None]) -> None:
        """Write `entries` in one transaction.

        Raises:
            StoreError: nothing was written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._guard:
            writes: Writes = {(bucket, key): value for key, value in entries.items()}
            for entry in writes:
                self._pending.pop(entry, None)  # older than this commit, but would be written after it
            self._commits.append((writes, loop, done))
        self._wake.set()
        await done
        for key, value in entries.items():
            if value is not None:
                self.damaged.pop((bucket, key), None)

    async def flush(self) -> None:
        """Wait until everything that was `put` is on disk.

        Raises:
            StoreError: the write failed; the entries stay in memory.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._guard:
            self._flushes.append((loop, done))
        self._wake.set()
        await done

    def close(self) -> None:
        """Write what is pending, and close. Blocks; writes that keep failing for seconds are `lost`."""
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
            except Exception as error:  # any error: without the writer nothing would be stored any more
                self.problem = f"the writer failed: {error!r}"
                self.failures += 1
                with self._guard:
                    self._pending = self._in_flight | self._pending
                    self._in_flight = {}
                if self._closing and self._gives_up():
                    return
                self._wake.wait(_RETRY_S)

    def _write_once(self) -> bool:
        """Write what is pending. True if the writer may end."""
        self._wake.wait(_RETRY_S if self.problem else None)
        if not self._closing:
            time.sleep(_GATHER_S)
        self._wake.clear()
        with self._guard:
            pending, self._pending = self._pending, {}
            self._in_flight = pending
            commits, self._commits = self._commits, []
            flushes, self._flushes = self._flushes, []
        commit_error = None
        for writes, loop, done in commits:
            commit_error = self._transaction(writes)
            _resolve(loop, done, commit_error)
        reopens = self._unopened_path is not None
        error = self._transaction(pending) if pending or reopens else None
        if commits or pending or reopens:
            self.problem = str(error or commit_error) if error or commit_error else None
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
        """Whether `close` has retried for long enough."""
        self._give_up_at = self._give_up_at or time.monotonic() + _LAST_TRY_S
        if time.monotonic() < self._give_up_at:
            return False
        self.lost = len(self._pending)
        return True

    def _transaction(self, writes: Writes) -> Exception | None:
        deletes = [key for key, value in writes.items() if value is None]
        upserts = [(*key, _seal(*key, value)) for key, value in writes.items() if value is not None]
        with self._reading:
            try:
                if self._unopened_path is not None:
                    self._reopen(self._unopened_path)
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", upserts)
                self._database.executemany("DELETE FROM entries WHERE bucket = ? AND key = ?", deletes)
                self._database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self.failures += 1
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                return error
        return None

    def _reopen(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = _connect(path)
        self._database.close()
        self._database, self._unopened_path = database, None


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _is_disk_error(error: Exception) -> bool:
    """Whether the disk is at fault, not the permissions or content of the file."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN"))


def _read_into_memory(path: Path) -> sqlite3.Connection:
    """Copy what can be read of a file that is not writable into memory; empty if there is no file."""
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    memory.execute(_TABLE)
    # If the WAL cannot be opened either, read without it: that misses the newest writes, but is better than nothing.
    for options in ("mode=ro", "immutable=1"):
        if not path.exists():
            break
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?{options}", uri=True)) as file:
                if file.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
                    break
                rows = file.execute("SELECT bucket, key, value FROM entries").fetchall()
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
            raise sqlite3.DatabaseError("the file failed its integrity check")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise sqlite3.OperationalError(
                f"the data was written by a later version (layout {version}; this version supports {_SCHEMA_VERSION}):"
                " upgrade, or use another data folder"
            )
        database.execute(_TABLE)
        database.execute("SELECT bucket, key, value FROM entries LIMIT 0")
        if version == _WITHOUT_DIGESTS:
            _add_digests(database)
        if version != _SCHEMA_VERSION:  # do not write needlessly: the disk may be full
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
    """The value; None if it is damaged."""
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

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting
        loop.call_soon_threadsafe(settle)

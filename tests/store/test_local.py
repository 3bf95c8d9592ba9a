import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import StoreError
from relay.store import local
from relay.store.local import LocalStore
from tests.conftest import eventually


async def test_values_survive_reopening(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "s")
    store.put("a", b"1", b"one")
    store.put("a", b"2", b"two")
    store.put("b", b"1", b"other")
    assert store.get("a", b"1") == b"one", "before it is on disk"
    await store.flush()
    store.put("a", b"2", None)
    assert store.get("a", b"2") is None
    store.close()
    again = LocalStore(tmp_path / "s")
    assert again.load("a") == [(b"1", b"one")]
    assert again.get("b", b"1") == b"other"
    assert again.get("b", b"9") is None
    again.close()


async def test_commit_is_atomic(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "s")
    await store.commit("p", {b"x": b"1", b"y": b"2"})
    await store.commit("p", {b"x": None, b"y": b"3"})
    assert store.load("p") == [(b"y", b"3")]
    store.close()


async def test_corrupt_file_is_renamed_and_logged(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"this is not a database, but long enough to look like a file that was one" * 100)
    store = LocalStore(path)
    assert store.corrupt_copy is not None
    assert store.corrupt_copy.read_bytes().startswith(b"this is not")
    assert store.load("a") == []
    store.put("a", b"k", b"v")
    await store.flush()
    store.close()


async def test_half_written_file_is_detected_on_open(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = LocalStore(path)
    await store.commit("a", {i.to_bytes(4, "big"): os.urandom(500) for i in range(2000)})
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = LocalStore(path)
    assert again.corrupt_copy is not None
    again.close()


async def test_second_process_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "s")
    code = (
        f"from relay.store.local import LocalStore; from pathlib import Path; LocalStore(Path({str(tmp_path / 's')!r}))"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "StoreError" in done.stderr
    assert "locked" in done.stderr
    store.close()


def test_uncreatable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        LocalStore(tmp_path / "file" / "s")


async def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the same error from the same call."""
    store = LocalStore(tmp_path / "s")
    store.put("a", b"before", b"1")
    await store.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        store.put("a", b"big", bytes(200_000))
        with pytest.raises(StoreError):
            await store.flush()
        assert store.problem
        assert store.failures
        with pytest.raises(StoreError):
            await store.commit("p", {b"k": bytes(200_000)})
        assert store.problem
        assert store.get("a", b"big") == bytes(200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    store.put("a", b"after", b"2")
    await store.flush()
    assert not getattr(store, "problem")  # noqa: B009
    assert {key for key, _ in store.load("a")} == {b"before", b"big", b"after"}
    assert store.load("p") == []
    store.close()


async def test_file_with_other_tables_is_renamed(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "s")
    database.execute("CREATE TABLE entries (other TEXT)")
    database.commit()
    database.close()
    store = LocalStore(tmp_path / "s")
    assert store.corrupt_copy is not None
    assert store.load("a") == []
    store.put("a", b"k", b"v")
    await store.flush()
    assert store.get("a", b"k") == b"v"
    store.close()


def test_file_of_a_later_layout_is_refused_and_unchanged(tmp_path: Path) -> None:
    import sqlite3

    database = sqlite3.connect(tmp_path / "s")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="layout 99"):
        LocalStore(tmp_path / "s")
    assert not list(tmp_path.glob("*corrupt*"))


# ---- one bad byte


async def test_damaged_value_is_dropped_and_reported_until_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    store = LocalStore(path)
    for key in (b"good", b"bad", b"worse"):
        store.put("b", key, b"value of " + key)
    await store.flush()
    store.close()
    plain = sqlite3.connect(path)
    plain.execute("UPDATE entries SET value = substr(value, 1, 8) || x'00' || substr(value, 10) WHERE key = x'626164'")
    plain.execute("UPDATE entries SET value = x'' WHERE key = x'776f727365'")
    plain.commit()
    plain.close()
    again = LocalStore(path)
    assert again.load("b") == [(b"good", b"value of good")]
    assert set(again.damaged) == {("b", b"bad"), ("b", b"worse")}
    again.put("b", b"bad", b"anew")
    await again.commit("b", {b"worse": b"anew"})
    assert again.damaged == {}
    assert again.get("b", b"worse") == b"anew"
    again.close()


async def test_digests_are_added_to_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    plain = sqlite3.connect(path)
    plain.execute(
        "CREATE TABLE entries (bucket TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (bucket, key)) WITHOUT ROWID"
    )
    plain.execute("INSERT INTO entries VALUES ('b', x'01', x'02')")
    plain.execute("PRAGMA user_version = 1")
    plain.commit()
    plain.close()
    store = LocalStore(path)
    assert store.load("b") == [(b"\x01", b"\x02")]
    store.close()


async def test_data_of_a_later_version_is_refused_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    LocalStore(path).close()
    plain = sqlite3.connect(path)
    plain.execute("PRAGMA user_version = 99")
    plain.close()
    with pytest.raises(StoreError, match="the data was written by a later version"):
        LocalStore(path)


# ---- a disk that cannot be written


async def test_store_starts_read_only_and_writes_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.sqlite3"
    store = LocalStore(path)
    store.put("b", b"k", b"v")
    await store.flush()
    store.close()
    real = local._connect

    def full(_: Path) -> sqlite3.Connection:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    monkeypatch.setattr(local, "_connect", full)
    again = LocalStore(path)
    assert again.problem == "database or disk is full"
    assert again.load("b") == [(b"k", b"v")]
    again.put("b", b"n", b"new")
    assert again.get("b", b"n") == b"new"
    with pytest.raises(StoreError):
        await again.flush()
    monkeypatch.setattr(local, "_connect", real)
    await eventually(lambda: again.problem is None)
    await again.flush()
    again.close()
    assert again.lost == 0
    last = LocalStore(path)
    assert dict(last.load("b")) == {b"k": b"v", b"n": b"new"}
    last.close()


async def test_writes_lost_at_close_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LAST_TRY_S", 0.5)
    path = tmp_path / "s.sqlite3"
    store = LocalStore(path)
    monkeypatch.setattr(store, "_transaction", lambda writes: sqlite3.OperationalError("disk I/O error"))
    for number in range(3):
        store.put("b", bytes([number]), b"v")
    await asyncio.to_thread(store.close)
    assert store.lost == 3


async def test_inaccessible_folder_is_an_error_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StoreError, match=r"this user may not use the folder \(Permission denied\)"):
        LocalStore(tmp_path / "s.sqlite3")


async def test_failing_writer_reports_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "s")

    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(local, "_seal", broken)
        store.put("a", b"1", b"one")
        await eventually(lambda: store.problem is not None)
        assert "a fault of ours" in (store.problem or "")
        assert store.get("a", b"1") == b"one"
    await store.flush()
    assert store.problem is None
    store.close()
    again = LocalStore(tmp_path / "s")
    assert again.load("a") == [(b"1", b"one")]
    again.close()

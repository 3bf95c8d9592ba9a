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
from relay.store.local import LocalStore


async def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
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


async def test_a_commit_is_whole(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "s")
    await store.commit("p", {b"x": b"1", b"y": b"2"})
    await store.commit("p", {b"x": None, b"y": b"3"})
    assert store.load("p") == [(b"y", b"3")]
    store.close()


async def test_a_corrupt_file_is_set_aside_and_said(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"this is not a database, but long enough to look like a file that was one" * 100)
    store = LocalStore(path)
    assert store.set_aside is not None
    assert store.set_aside.read_bytes().startswith(b"this is not")
    assert store.load("a") == []
    store.put("a", b"k", b"v")
    await store.flush()
    store.close()


async def test_a_half_written_file_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = LocalStore(path)
    await store.commit("a", {i.to_bytes(4, "big"): os.urandom(500) for i in range(2000)})
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = LocalStore(path)
    assert again.set_aside is not None
    again.close()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "s")
    code = (
        f"from relay.store.local import LocalStore; from pathlib import Path; LocalStore(Path({str(tmp_path / 's')!r}))"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "StoreError" in done.stderr
    assert "locked" in done.stderr
    store.close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        LocalStore(tmp_path / "file" / "s")


async def test_a_full_disk_is_survived_and_nothing_is_lost(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the same error from the same call."""
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


async def test_a_file_of_other_tables_is_set_aside(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "s")
    database.execute("CREATE TABLE entries (other TEXT)")
    database.commit()
    database.close()
    store = LocalStore(tmp_path / "s")
    assert store.set_aside is not None
    assert store.load("a") == []
    store.put("a", b"k", b"v")
    await store.flush()
    assert store.get("a", b"k") == b"v"
    store.close()


def test_a_file_of_a_later_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    import sqlite3

    database = sqlite3.connect(tmp_path / "s")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="layout 99"):
        LocalStore(tmp_path / "s")
    assert not list(tmp_path.glob("*corrupt*"))

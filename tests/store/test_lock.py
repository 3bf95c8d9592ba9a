from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import StoreError
from relay.store.lock import FolderLock


def test_one_process_per_folder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "data")
    lock.take()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    with pytest.raises(StoreError, match=f"{tmp_path}/data: another process is using this data folder"):
        FolderLock(tmp_path / "data").take()
    lock.release()
    again = FolderLock(tmp_path / "data")
    again.take()
    again.release()
    again.release()


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from relay.store.lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).take(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -9
    FolderLock(tmp_path).take()


def test_uncreatable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/data"):
        FolderLock(tmp_path / "file" / "data").take()

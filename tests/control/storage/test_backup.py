"""Backup of a running control plane, and restore."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest

from relay.control.storage.backup import backup, restore
from relay.control.storage.database import FILE
from relay.errors import StoreError
from relay.ids import sha256
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually

BYTES = b"package bytes" * 1000


async def running(programs: Programs) -> Path:
    """The data folder of a control plane with documents, a package and a node."""
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a", rate=7))
    digest = sha256(BYTES).hex()
    folder = programs.folder / "control-plane"
    (folder / "packages").mkdir(exist_ok=True)
    (folder / "packages" / digest).write_bytes(BYTES)
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    return folder


async def test_backup_and_restore_begin_a_new_epoch(programs: Programs) -> None:
    folder = await running(programs)
    archive = programs.folder / "b.tar"
    made = backup(folder, archive, packages=True, master_key=None)
    assert made.size == archive.stat().st_size
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert [p.name for p in programs.folder.glob(".*")] == [], "nothing is left beside it"
    with pytest.raises(StoreError, match="exists"):
        backup(folder, archive, packages=True, master_key=None)
    with pytest.raises(StoreError, match="is not empty"):
        restore(archive, folder)
    await programs.stop_all()
    folder.rename(programs.folder / "lost")
    assert restore(archive, folder).epoch == 2
    with pytest.raises(StoreError, match=r"master\.key is missing: restore it"):
        await programs.control_plane()
    shutil.copy(programs.folder / "lost/keys/master.key", folder / "keys/master.key")
    back = await programs.control_plane()
    assert set(back.ledger.state.catalog.assignments) == {"a"}
    node = await programs.node(back.ports["link"])
    await eventually(lambda: node.policy.receiver.version is not None and node.policy.receiver.version[0] == 2)
    assert not back.condition.degraded


async def test_master_key_is_included_only_on_request(programs: Programs) -> None:
    folder = await running(programs)
    key = folder / "keys/master.key"
    for included in (None, key):
        archive, target = programs.folder / f"{included is None}.tar", programs.folder / f"{included is None}"
        files = backup(folder, archive, packages=False, master_key=included).files
        assert restore(archive, target).files == files
        assert (target / "keys/master.key").exists() is (included is not None)
        assert (key.read_bytes() in archive.read_bytes()) is (included is not None)
        assert (folder / "keys/root.pem").read_bytes() not in archive.read_bytes()
        if included is not None:
            assert (target / "keys/master.key").read_bytes() == key.read_bytes()


async def test_damaged_archive_leaves_nothing_behind(programs: Programs) -> None:
    folder = await running(programs)
    archive = programs.folder / "b.tar"
    backup(folder, archive, packages=True, master_key=folder / "keys/master.key")
    good = archive.read_bytes()
    target = programs.folder / "target"
    for position in (0, 600, len(good) // 2, len(good) - 11_000, len(good) - 1_000, len(good) - 1):
        archive.write_bytes(good[:position] + bytes([good[position] ^ 0x01]) + good[position + 1 :])
        with pytest.raises(StoreError):
            restore(archive, target)
        assert not target.exists()
    for bad in (b"", b"nonsense", good[:5000], good[: len(good) // 2]):
        archive.write_bytes(bad)
        with pytest.raises(StoreError, match="not a backup"):
            restore(archive, target)
    assert not target.exists()
    target.mkdir()
    archive.write_bytes(good)
    assert restore(archive, target).epoch == 2, "an empty folder will do"


def test_invalid_source_and_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database found"):
        backup(tmp_path, tmp_path / "b.tar", packages=True, master_key=None)
    sqlite3.connect(tmp_path / FILE).close()
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError):
        backup(tmp_path, tmp_path / "b.tar", packages=True, master_key=None)
    assert not (tmp_path / "b.tar").exists()


def test_path_traversal_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "b.tar"
    with tarfile.open(archive, "w") as file:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(entry)
    archive.write_bytes(archive.read_bytes() + f"{sha256(archive.read_bytes()).hex()}\n".encode())
    with pytest.raises(StoreError, match="is not part of a backup"):
        restore(archive, tmp_path / "target")

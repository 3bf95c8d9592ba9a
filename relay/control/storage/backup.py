"""Backup and restore: a consistent copy of a control plane's data in one file. The control plane may be running.

SQLite makes the copy: a plain file copy would miss the write-ahead log. The archive is a tar with a list of digests;
everything is verified before any file is put in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from relay import __version__
from relay.control.storage import schema
from relay.control.storage.database import FILE, migrated
from relay.control.storage.schema import EPOCH, FIRST_EPOCH
from relay.errors import StoreError

PACKAGES = "packages"
MASTER = "keys/master.key"
_CONTENTS = "contents.json"
_FORMAT = 1
_PIECE_BYTES = 1 << 20
_TRAILER_BYTES = 65
"""The digest of the whole tar, after its end, where tar readers do not look."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What an archive contains."""

    files: int
    """The number of package files."""
    size: int
    """In bytes."""
    epoch: int = 0
    """The epoch that a restored control plane publishes in."""


def backup(data_dir: Path, target: Path, *, packages: bool, master_key: Path | None) -> Summary:
    """Write an archive of a control plane's data folder.

    Args:
        packages: include the package files; false if they are not in the folder.
        master_key: a file to include: without it, nobody can read the secrets of the database, nor start it.

    Raises:
        StoreError: there is no database, or the archive cannot be written. No partial archive is left behind.
    """
    source = data_dir / FILE
    if not source.is_file():
        raise StoreError(f"{source}: no database found")
    if target.exists():
        raise StoreError(f"{target}: already exists; a backup never overwrites a file")
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with _temporary(unfinished), tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as scratch:
            copy = Path(scratch) / FILE
            _copy_database(source, copy)
            sizes = _package_files(copy) if packages else {}
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                files = _write(file, copy, data_dir / PACKAGES, sizes, master_key)
                file.flush()
                file.write(f"{_digest_of(unfinished)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            _verify(unfinished)
            _put(unfinished, target)
    except FileExistsError as error:
        raise StoreError(f"{error.filename2 or error.filename}: already exists") from None
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise StoreError(f"{target}: {error}") from error
    return Summary(files, target.stat().st_size)


def _put(unfinished: Path, target: Path) -> None:
    """Move a file to its final name. Never overwrites a file that appeared meanwhile, as a rename would."""
    try:
        os.link(unfinished, target)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(unfinished, target)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[None]:
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _copy_database(source: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as original,
        contextlib.closing(sqlite3.connect(copy)) as database,
    ):
        original.backup(database)
        _check(database, source)


def _check(database: sqlite3.Connection, path: Path) -> None:
    result = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if result != "ok":
        raise StoreError(f"{path}: damaged ({result})")


def _package_files(copy: Path) -> dict[str, int]:
    """SHA-256 of each registered package file → size in bytes."""
    with migrated(copy) as connection:
        versions = [json.loads(body) for body in connection.execute(sa.select(schema.packages.c.body)).scalars()]
    return {file["sha256"]: file["size"] for version in versions for file in version["files"]}


def _write(file: IO[bytes], copy: Path, folder: Path, sizes: dict[str, int], master_key: Path | None) -> int:
    digests: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="w") as archive:
        digests[FILE] = _add(archive, FILE, copy)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()) if sizes else []:
            if path.name in sizes:
                name = f"{PACKAGES}/{path.relative_to(folder)}"
                digests[name] = _add(archive, name, path)
                if digests[name] != path.name:
                    raise StoreError(f"{path}: damaged; push it again, or delete its package version")
        packages = len(digests) - 1
        if master_key is not None:
            digests[MASTER] = _add(archive, MASTER, master_key)
        missing = sizes.keys() - {name.rpartition("/")[2] for name in digests}
        if missing:
            raise StoreError(f"{folder}: {len(missing)} package files are missing, for example {sorted(missing)[0]}")
        contents = json.dumps({"format": _FORMAT, "version": __version__, "files": digests}, indent=1).encode()
        entry = tarfile.TarInfo(_CONTENTS)
        entry.size = len(contents)
        archive.addfile(entry, io.BytesIO(contents))
    return packages


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    digest = _digest_of(path)
    entry = tarfile.TarInfo(name)
    with path.open("rb") as source:
        entry.size = os.fstat(source.fileno()).st_size
        archive.addfile(entry, source)
    return digest


def _digest_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _verify(path: Path) -> dict[str, str]:
    """Read and verify a whole archive. Returns file name → digest.

    Raises:
        StoreError: it is damaged, or not a backup.
    """
    digests: dict[str, str] = {}
    listing: Any = None
    try:
        if not _is_whole(path):
            raise StoreError(f"{path}: not a backup, or damaged: the digest at its end does not match")
        with tarfile.open(path, mode="r:") as archive:
            for entry in archive:
                source = archive.extractfile(entry) if entry.isreg() else None
                if source is None or entry.name in digests:
                    raise StoreError(f"{path}: {entry.name} is not part of a backup")
                if entry.name == _CONTENTS:
                    listing = json.loads(source.read())
                else:
                    digests[entry.name] = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise StoreError(f"{path}: not a backup, or damaged: {error}") from error
    if not isinstance(listing, dict) or listing.get("files") != digests or FILE not in digests:
        raise StoreError(f"{path}: not a backup, or damaged: its list does not match its contents")
    if listing.get("format") != _FORMAT:
        raise StoreError(f"{path}: the backup was written by a later version; upgrade first")
    return digests


def _is_whole(path: Path) -> bool:
    remaining = path.stat().st_size - _TRAILER_BYTES
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while remaining > 0 and (piece := file.read(min(_PIECE_BYTES, remaining))):
            hasher.update(piece)
            remaining -= len(piece)
        return file.read() == f"{hasher.hexdigest()}\n".encode()


def restore(archive: Path, data_dir: Path) -> Summary:
    """Restore a data folder from an archive, in a new epoch: its policy replaces whatever nodes received since the backup.

    Raises:
        StoreError: the folder is not empty, or the archive is damaged. The folder is then unchanged.
    """
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise StoreError(f"{data_dir}: is not empty; a restore never overwrites data")
    if not archive.is_file():
        raise StoreError(f"{archive}: no such file")
    names = _verify(archive)
    scratch: Path | None = None
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=data_dir.parent, prefix=f".{data_dir.name}-"))
        with tarfile.open(archive, mode="r:") as source:
            for name, digest in names.items():
                _extract(source, name, digest, scratch)
        epoch = _begin_epoch(scratch / FILE, archive)
        if data_dir.exists():
            data_dir.rmdir()
        scratch.rename(data_dir)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise StoreError(f"{data_dir}: {error}") from error
    finally:
        if scratch is not None and scratch.exists():
            shutil.rmtree(scratch, ignore_errors=True)
    return Summary(len(names.keys() - {FILE, MASTER}), archive.stat().st_size, epoch)


def _extract(archive: tarfile.TarFile, name: str, digest: str, folder: Path) -> None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or (parts[0] not in (FILE, PACKAGES) and name != MASTER):
        raise StoreError(f"{name} is not part of a backup")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(name)
    assert source is not None
    hasher = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := source.read(_PIECE_BYTES):
            hasher.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if hasher.hexdigest() != digest:
        raise StoreError(f"{name} is damaged")


def _begin_epoch(path: Path, archive: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        _check(database, archive)
    with migrated(path) as connection:
        current = connection.execute(sa.select(schema.facts.c.value).where(schema.facts.c.name == EPOCH)).scalar()
        bodies = connection.execute(sa.select(schema.manifests.c.body)).scalars()
        epochs = [int(json.loads(body)["epoch"]) for body in bodies]
        epoch = max(int(current or FIRST_EPOCH), FIRST_EPOCH, *epochs) + 1
        connection.execute(sa.delete(schema.facts).where(schema.facts.c.name == EPOCH))
        connection.execute(sa.insert(schema.facts).values(name=EPOCH, value=str(epoch)))
    return epoch

"""Files in a folder, named by their SHA-256: written to a partial file, verified, then renamed into place.

Only files that this process has verified are served: after a start every file is unknown until it is hashed again.
All methods block and are thread-safe, but each file must have only one writer at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Container
from io import BufferedReader
from pathlib import Path

from relay.errors import StoreError

_NAME = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".part"


class BlobStore:
    """A folder of files; the least recently used are removed first.

    Args:
        max_bytes: size of all files together.
        keep_free: bytes of the disk to leave free for other data, such as policy and records, whatever `max_bytes` is.

    Raises:
        StoreError: the folder cannot be created or read.
    """

    def __init__(self, folder: Path, max_bytes: int, *, keep_free: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_free = keep_free
        self._guard = threading.Lock()
        self._sizes: dict[str, int] = {}
        """File name (partial files included) → bytes, least recently used first."""
        self._verified: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted((entry.stat().st_mtime, entry.name, entry.stat().st_size) for entry in os.scandir(folder))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS):
                raise StoreError(f"{folder}: {error.strerror}") from error
            files = []  # writing will create the folder, or fail
        for _, name, size in files:
            if _NAME.fullmatch(name.removesuffix(_PARTIAL)):
                self._sizes[name] = size

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, partial ones included."""
        with self._guard:
            return sum(self._sizes.values())

    @property
    def verified(self) -> list[str]:
        """SHA-256 of all verified files."""
        with self._guard:
            return sorted(self._verified)

    def path(self, sha256: str) -> Path:
        """Where a file is, or would be."""
        return self._folder / sha256

    def is_verified(self, sha256: str) -> bool:
        """Whether a file is complete and verified."""
        return sha256 in self._verified

    def has_file(self, sha256: str) -> bool:
        """Whether a file is complete, verified or not."""
        return sha256 in self._sizes

    def touch(self, sha256: str) -> None:
        """Mark a file as the most recently used."""
        with self._guard:
            if sha256 in self._sizes:
                self._sizes[sha256] = self._sizes.pop(sha256)
        with contextlib.suppress(OSError):
            os.utime(self.path(sha256))

    def verify(self, sha256: str) -> bool:
        """Hash a file and return whether it is intact; remove it if it is not.

        Raises:
            StoreError: the file cannot be read.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                intact = _has_hash(file, sha256)
        except FileNotFoundError:
            intact = False
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        with self._guard:
            if intact:
                self._verified.add(sha256)
                return True
        self.remove(sha256)
        return False

    def remove(self, sha256: str) -> None:
        """Remove a file and its partial file. Readers that have it open can finish."""
        with self._guard:
            self._verified.discard(sha256)
            for name in (sha256, sha256 + _PARTIAL):
                self._sizes.pop(name, None)
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    # ---- writing

    def partial_bytes(self, sha256: str) -> int:
        """Size of the partial file; 0 if there is none."""
        return self._sizes.get(sha256 + _PARTIAL, 0)

    def append(self, sha256: str, content: bytes) -> None:
        """Append to the partial file.

        Raises:
            StoreError: the write failed (disk full); earlier content is kept.
        """
        name = sha256 + _PARTIAL
        path = self._folder / name
        size = self.partial_bytes(sha256)
        try:
            with path.open("r+b" if size else "wb") as file:
                file.truncate(size)
                file.seek(size)
                file.write(content)
        except FileNotFoundError as error:
            # Somebody removed the file or the folder: the next try starts over.
            self.remove(sha256)
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
            raise StoreError(f"{path}: {error.strerror}") from error
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise StoreError(f"{path}: {error.strerror}") from error
        with self._guard:
            self._sizes[name] = size + len(content)

    def finish(self, sha256: str) -> bool:
        """Verify the partial file and move it into place; remove it if its hash is wrong.

        Returns:
            Whether the hash is right.

        Raises:
            StoreError: the file cannot be read or moved.
        """
        name = sha256 + _PARTIAL
        path = self._folder / name
        try:
            if not path.exists():  # an empty file was never appended to
                path.touch()
            with path.open("rb") as file:
                os.fsync(file.fileno())
                intact = _has_hash(file, sha256)
            if intact:
                os.replace(path, self.path(sha256))
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if not intact:
            self.remove(sha256)
            return False
        with self._guard:
            self._sizes[sha256] = self._sizes.pop(name, 0)
            self._verified.add(sha256)
        return True

    def make_room(self, size: int, pinned: Container[str]) -> bool:
        """Remove unpinned files until there is room for `size` more bytes; False if that is not enough."""
        with self._guard:
            names = list(self._sizes)
        for name in names:
            if self._has_room(size):
                return True
            sha256 = name.removesuffix(_PARTIAL)
            if sha256 not in pinned:
                self.remove(sha256)
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        if self.used_bytes + size > self._max_bytes:
            return False
        try:
            return shutil.disk_usage(self._folder).free - size >= self._keep_free
        except OSError:
            return True  # writing will tell

    def drop_oldest(self, pinned: Container[str]) -> bool:
        """Remove the least recently used unpinned file: the disk is full before `max_bytes`. False if there is none."""
        with self._guard:
            names = list(self._sizes)
        for name in names:
            sha256 = name.removesuffix(_PARTIAL)
            if sha256 not in pinned:
                self.remove(sha256)
                return True
        return False


def _has_hash(file: BufferedReader, sha256: str) -> bool:
    return hashlib.file_digest(file, "sha256").hexdigest() == sha256

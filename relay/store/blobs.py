"""Files by their SHA-256 in a folder: written beside their place, verified, then put into it by one rename.

What is in place was verified by this process or is not served: at a start every file is unknown until it is hashed again.
All methods block and may be called from any thread; one file is written by one caller at a time.
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
    """A folder of files: those that were used longest ago go first.

    Args:
        max_bytes: of all files together.
        keep_free: bytes of the disk that stay free for others, as policy and records, whatever `max_bytes` allows.

    Raises:
        StoreError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, max_bytes: int, *, keep_free: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_free = keep_free
        self._guard = threading.Lock()
        self._sizes: dict[str, int] = {}
        """File name (a partial one too) → bytes, the one that was used longest ago first."""
        self._verified: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted((entry.stat().st_mtime, entry.name, entry.stat().st_size) for entry in os.scandir(folder))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS):
                raise StoreError(f"{folder}: {error.strerror}") from error
            found = []  # what comes later tries again
        for _, name, size in found:
            if _NAME.fullmatch(name.removesuffix(_PARTIAL)):
                self._sizes[name] = size

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, unfinished ones too."""
        with self._guard:
            return sum(self._sizes.values())

    @property
    def held(self) -> list[str]:
        """SHA-256 of everything that may be served."""
        with self._guard:
            return sorted(self._verified)

    def path(self, sha256: str) -> Path:
        """Where a file is, or would be."""
        return self._folder / sha256

    def holds(self, sha256: str) -> bool:
        """Whether a file is here, whole and verified."""
        return sha256 in self._verified

    def has_file(self, sha256: str) -> bool:
        """Whether a file is here, verified or not."""
        return sha256 in self._sizes

    def used(self, sha256: str) -> None:
        """A file was asked for: it stays longer than others."""
        with self._guard:
            if sha256 in self._sizes:
                self._sizes[sha256] = self._sizes.pop(sha256)
        with contextlib.suppress(OSError):
            os.utime(self.path(sha256))

    def verify(self, sha256: str) -> bool:
        """Hash a file that is here; one that is not what it should be is removed.

        Raises:
            StoreError: it cannot be read.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                good = _has_hash(file, sha256)
        except FileNotFoundError:
            good = False
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        with self._guard:
            if good:
                self._verified.add(sha256)
                return True
        self.remove(sha256)
        return False

    def remove(self, sha256: str) -> None:
        """Forget a file and what there is of it unfinished. Those who read it now may read on."""
        with self._guard:
            self._verified.discard(sha256)
            for name in (sha256, sha256 + _PARTIAL):
                self._sizes.pop(name, None)
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    # ---- writing

    def partial_bytes(self, sha256: str) -> int:
        """How much of a file was written and not finished."""
        return self._sizes.get(sha256 + _PARTIAL, 0)

    def append(self, sha256: str, content: bytes) -> None:
        """Write more of a file.

        Raises:
            StoreError: it cannot be written (disk full); what was written before stays.
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
            # Somebody removed the file, or the folder: the next try begins anew.
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
        """Verify what was written and put it into its place; what is not as it should be is removed.

        Raises:
            StoreError: it cannot be read or moved.
        """
        name = sha256 + _PARTIAL
        path = self._folder / name
        try:
            if not path.exists():  # an empty file has nothing to append
                path.touch()
            with path.open("rb") as file:
                os.fsync(file.fileno())
                good = _has_hash(file, sha256)
            if good:
                os.replace(path, self.path(sha256))
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if not good:
            self.remove(sha256)
            return False
        with self._guard:
            self._sizes[sha256] = self._sizes.pop(name, 0)
            self._verified.add(sha256)
        return True

    def make_room(self, size: int, pinned: Container[str]) -> bool:
        """Remove files that are not pinned until `size` bytes more may be written; False where that is not enough."""
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
        """Remove the file that was used longest ago and is not pinned: the disk is full before we are. False for none."""
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

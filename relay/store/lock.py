"""One process per data folder: a lock that does not outlive its process."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from relay.errors import StoreError

_NAME = ".lock"


class FolderLock:
    """A lock from `take` to `release`, or to the end of the process.

    Args:
        file: a file in the folder to lock as well, so that deleting the lock file does not unlock the folder.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self._folder = folder
        # On other systems this lock would conflict with SQLite's own.
        extra = [file] if file is not None and sys.platform == "linux" else []
        self._files = [folder / _NAME, *extra]
        self._descriptors: list[int] = []

    def take(self) -> None:
        """Take the lock.

        Raises:
            StoreError: another process has the lock, or the folder is not writable.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # policies may contain secrets
            for file in self._files:
                self._descriptors.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.release()
            is_denied = isinstance(error, PermissionError)
            reason = "this user may not use the folder" if is_denied else "the data folder cannot be created here"
            raise StoreError(f"{self._folder}: {reason} ({error.strerror})") from error
        try:
            for descriptor in self._descriptors:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise StoreError(
                f"{self._folder}: another process is using this data folder; each process needs its own"
            ) from None

    def release(self) -> None:
        """Release the lock."""
        while self._descriptors:
            os.close(self._descriptors.pop())

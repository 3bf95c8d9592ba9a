"""One process a data folder: a lock that a killed process does not leave behind."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from relay.errors import StoreError

_NAME = ".lock"


class FolderLock:
    """Held from `take` to `release`, or to the end of the process.

    Args:
        file: of the folder, to be locked as well: who deletes the lock's own file does not unlock the folder.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self._folder = folder
        # Elsewhere such a lock and those of SQLite are of one kind, and would meet.
        more = [file] if file is not None and sys.platform == "linux" else []
        self._files = [folder / _NAME, *more]
        self._descriptors: list[int] = []

    def take(self) -> None:
        """Take it.

        Raises:
            StoreError: another process has it, or the folder cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # values of policies may be secrets
            for file in self._files:
                self._descriptors.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.release()
            not_ours = isinstance(error, PermissionError)
            reason = "this user may not use the folder" if not_ours else "the data folder cannot be created here"
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
        """Give it back."""
        while self._descriptors:
            os.close(self._descriptors.pop())

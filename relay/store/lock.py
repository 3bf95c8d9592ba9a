"""One process a data folder: a lock that a killed process does not leave behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from relay.errors import StoreError

_NAME = ".lock"


class FolderLock:
    """Held from `take` to `release`, or to the end of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            StoreError: another process has it, or the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            not_ours = isinstance(error, PermissionError)
            reason = "this user may not use the folder" if not_ours else "no data folder can be made here"
            raise StoreError(f"{self._folder}: {reason} ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise StoreError(
                f"{self._folder}: another process has this data folder; each needs one of its own"
            ) from None
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

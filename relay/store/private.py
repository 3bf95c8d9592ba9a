"""Data folders that nobody else may read: policies and records contain secrets."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


def make_private(folder: Path) -> None:
    """Create a folder, and take away the others' access to all that is in it. What cannot be changed is left as it is."""
    with contextlib.suppress(OSError):  # who opens the folder says what is wrong with it
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        _restrict(folder, _FOLDER_MODE)
        for parent, folders, files in os.walk(folder):
            for name in folders:
                _restrict(Path(parent, name), _FOLDER_MODE)
            for name in files:
                _restrict(Path(parent, name), _FILE_MODE)


def write_private(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def _restrict(path: Path, mode: int) -> None:
    with contextlib.suppress(OSError):
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)

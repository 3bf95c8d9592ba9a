"""The token of each server that somebody has logged in to, in a file that only they can read. Imports little."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_TOKEN, _TOKEN_FILE, _FOLDER = "OPAMPCTL_TOKEN", "OPAMPCTL_TOKEN_FILE", "OPAMPCTL_CONFIG_DIR"


class TokenFileError(Exception):
    """A token file cannot be read; the message says which and why."""


def saved_file() -> Path:
    """The file of saved tokens."""
    folder = os.environ.get(_FOLDER)
    if folder:
        return Path(folder) / "tokens.json"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "opampctl" / "tokens.json"


def token_for(origin: str) -> str:
    """The token to send to a server: from the environment, from a file, or saved by `login`; empty if there is none.

    Args:
        origin: SCHEME://HOST:PORT of the server.

    Raises:
        TokenFileError: the file that was named cannot be read.
    """
    if token := os.environ.get(_TOKEN, "").strip():
        return _checked(token, _TOKEN)
    if name := os.environ.get(_TOKEN_FILE, ""):
        return read_token(name)
    return _saved().get(origin, "")


def read_token(name: str) -> str:
    """The token in a file; `-` is standard input.

    Raises:
        TokenFileError: the file cannot be read, or is empty.
    """
    try:
        token = (sys.stdin.read() if name == "-" else Path(name).read_text()).strip()
    except OSError as error:
        raise TokenFileError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TokenFileError(f"{name}: not a token") from None
    return _checked(token, name)


def _checked(token: str, name: str) -> str:
    if not token or not token.isascii() or not token.isprintable():
        raise TokenFileError(f"{name}: not a token")
    return token


def save(origin: str, token: str) -> None:
    """Remember a token for a server; forget it if it is empty.

    Raises:
        OSError: the file cannot be written.
    """
    tokens = {**_saved(), origin: token}
    file = saved_file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump({key: value for key, value in tokens.items() if value}, stream, indent=2)
    fresh.replace(file)


def _saved() -> dict[str, str]:
    try:
        tokens = json.loads(saved_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in tokens.items()} if isinstance(tokens, dict) else {}

"""Encrypts secrets in the database with a key that is not in it: a backup of the database alone gives nothing away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.errors import StoreError
from relay.store.private import write_private

_KEY_BYTES = 32
_NONCE_BYTES = 12
_FORM = b"\x01"
"""The first byte of everything that is sealed."""
FILE = "master.key"


class Vault:
    """Seals and opens secrets with the master key in a folder. Creates the key on first use.

    Args:
        may_create: False if the database has secrets that only the key that is missing can open.

    Raises:
        StoreError: the key cannot be read or written, or is not one.
    """

    def __init__(self, folder: Path, *, may_create: bool = True) -> None:
        self._file = folder / FILE
        self._fresh_file = folder / f"{FILE}.new"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._file.exists() and not self._fresh_file.exists():
                if not may_create:
                    raise StoreError(
                        f"{self._file} is missing: restore it; without it the secrets of this database cannot be read."
                        " If it is lost, opamp-relay rekey makes new ones"
                    )
                write_private(self._file, os.urandom(_KEY_BYTES))
            if not self._file.exists():  # a replacement was interrupted, and the former key put aside
                self._fresh_file.replace(self._file)
            keys = [file.read_bytes() for file in (self._file, self._fresh_file) if file.exists()]
        except OSError as error:
            raise StoreError(f"{self._file}: {error.strerror}") from None
        if any(len(key) != _KEY_BYTES for key in keys):
            raise StoreError(
                f"{self._file}: not a master key: restore it from a backup; without it the secrets cannot be read"
            )
        self._keys = keys

    def seal(self, name: str, secret: bytes) -> bytes:
        """Encrypt a secret. It can only be opened under its own name."""
        return _seal(self._keys[0], name, secret)

    def open(self, name: str, sealed: bytes) -> bytes:
        """Decrypt a secret.

        Raises:
            StoreError: it was sealed under another master key or name, or is damaged.
        """
        for key in self._keys:
            with contextlib.suppress(InvalidTag, ValueError):
                return _open(key, name, sealed)
        raise StoreError(f"secret {name} cannot be decrypted: {FILE} is not the one that belongs to this database")

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Callable[[str, bytes], bytes]]:
        """Replace the master key. Within, all secrets must be sealed anew and stored; if that raises, nothing changes.

        Yields:
            The function that seals with the new key.

        Raises:
            StoreError: the new key cannot be written.
        """
        if self._fresh_file.exists():
            raise StoreError(
                f"{self._fresh_file} is left from a replacement that failed: restart the control plane first"
            )
        fresh = os.urandom(_KEY_BYTES)
        try:
            write_private(self._fresh_file, fresh)
        except OSError as error:
            raise StoreError(f"{self._fresh_file}: {error.strerror}") from None
        # If the block raises, both stay: only the database knows whether it was stored, and `settle` asks it.
        self._keys = [self._keys[0], fresh]
        yield lambda name, secret: _seal(fresh, name, secret)
        self._take_over(fresh)

    def _take_over(self, key: bytes) -> None:
        self._keys = [key]
        try:
            self._fresh_file.replace(self._file)
        except OSError as error:  # the next start tries again
            raise StoreError(f"{self._file}: {error.strerror}; the new key is in {self._fresh_file}") from None

    def settle(self, secrets: Iterable[tuple[str, bytes]]) -> None:
        """Finish or undo a replacement that a crash interrupted.

        Args:
            secrets: (name, sealed) of everything.

        Raises:
            StoreError: a file cannot be replaced or removed.
        """
        if len(self._keys) == 1:
            return
        old, fresh = self._keys
        others = [(name, sealed) for name, sealed in secrets if not _opens(old, name, sealed)]
        if any(_opens(fresh, name, sealed) for name, sealed in others):
            self._take_over(fresh)
            return
        self._keys = [old]
        try:
            self._fresh_file.unlink()
        except OSError as error:
            raise StoreError(f"{self._fresh_file}: {error.strerror}") from None


def _seal(key: bytes, name: str, secret: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return _FORM + nonce + AESGCM(key).encrypt(nonce, secret, name.encode())


def _open(key: bytes, name: str, sealed: bytes) -> bytes:
    if sealed[:1] != _FORM:
        raise InvalidTag
    return AESGCM(key).decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], name.encode())


def _opens(key: bytes, name: str, sealed: bytes) -> bool:
    try:
        _open(key, name, sealed)
    except (InvalidTag, ValueError):
        return False
    return True

"""Encrypts secrets in the database with a key that is not in it: a backup of the database alone gives nothing away."""

from __future__ import annotations

import os
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


def master_of(folder: Path, *, may_create: bool = True) -> bytes:
    """The master key in a folder. Creates it on first use.

    Args:
        may_create: False if the database has secrets that only the key that is missing can open.

    Raises:
        StoreError: it cannot be read or written, or is not a key.
    """
    file = folder / FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists() and not may_create:
            raise StoreError(f"{file} is missing: restore it; without it the secrets of this database cannot be read")
        if not file.exists():
            write_private(file, os.urandom(_KEY_BYTES))
        key = file.read_bytes()
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from None
    if len(key) != _KEY_BYTES:
        raise StoreError(f"{file}: not a master key: restore it from a backup; without it the secrets cannot be read")
    return key


class Vault:
    """Seals and opens secrets.

    Args:
        master: 32 bytes.
    """

    def __init__(self, master: bytes) -> None:
        self._cipher = AESGCM(master)

    def seal(self, name: str, secret: bytes) -> bytes:
        """Encrypt a secret. It can only be opened under its own name."""
        nonce = os.urandom(_NONCE_BYTES)
        return _FORM + nonce + self._cipher.encrypt(nonce, secret, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """Decrypt a secret.

        Raises:
            StoreError: it was sealed under another master key or name, or is damaged.
        """
        nonce, content = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if sealed[:1] != _FORM:
                raise InvalidTag
            return self._cipher.decrypt(nonce, content, name.encode())
        except (InvalidTag, ValueError):
            raise StoreError(
                f"secret {name} cannot be decrypted: {FILE} is not the one that belongs to this database"
            ) from None

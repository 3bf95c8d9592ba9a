"""Signatures (Ed25519) over payloads, each for one purpose: a signature of one kind of payload never serves for another."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.ids import sha256


class Purpose(Enum):
    """What is signed; signed before the payload."""

    KEY_SET = b"opamp-keyset\0"
    MANIFEST = b"opamp-manifest\0"
    FRESHNESS = b"opamp-freshness\0"


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload and one signature of it."""

    payload: bytes
    key: str
    """Id of the key: SHA-256 of the public key, hex."""
    signature: bytes

    def plain(self) -> dict[str, str]:
        """As JSON, in base64."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "key": self.key,
            "signature": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_plain(cls, value: Any) -> Signed:
        """The reverse of `plain`.

        Raises:
            ValueError: not of this form.
        """
        try:
            payload, signature = (base64.b64decode(value[name], validate=True) for name in ("payload", "signature"))
            key = value["key"]
        except (KeyError, TypeError, binascii.Error):
            raise ValueError("not a signed payload") from None
        if not isinstance(key, str):
            raise ValueError("not a signed payload")
        return cls(payload, key, signature)

    def is_by(self, purpose: Purpose, keys: Mapping[str, bytes]) -> bool:
        """Whether one of some keys made the signature, for this purpose.

        Args:
            keys: id → public key (32 bytes).
        """
        public = keys.get(self.key)
        if public is None:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(self.signature, purpose.value + self.payload)
        except (InvalidSignature, ValueError):
            return False
        return True


def key_id(public: bytes) -> str:
    """The id of a public key: its SHA-256, hex."""
    return sha256(public).hex()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The public half of a key, 32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(purpose: Purpose, payload: bytes, key: Ed25519PrivateKey) -> Signed:
    """Sign a payload."""
    return Signed(payload, key_id(public_bytes(key)), key.sign(purpose.value + payload))

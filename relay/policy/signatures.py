"""Package signatures: Ed25519, detached, over a statement about the file (as in TUF: name, version, hash, expiry).

The statement covers more than the bytes, so that nobody can pass off an old version or another package as this one.
"""

from __future__ import annotations

import re
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import Field, field_validator

from relay.documents import canonical_json
from relay.policy.model import Metadata, Model
from relay.policy.packages import PackageFile, PublishedPackage

_HEX = re.compile(r"[0-9a-f]{128}")


class SigningKeySpec(Model):
    """The body of a signing key."""

    public_key: str = Field(max_length=4096)
    """Ed25519, PEM."""

    @field_validator("public_key")
    @classmethod
    def _readable(cls, text: str) -> str:
        public_key(text)
        return text


class PackageSigningKey(Model):
    """A key that packages may be signed with."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["PackageSigningKey"]
    metadata: Metadata
    spec: SigningKeySpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name


def public_key(pem: str) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        ValueError: it is not a key, or not an Ed25519 key.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except Exception:  # the library's errors have no common base
        raise ValueError("not a public key in PEM (`openssl pkey -pubout`)") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return key


def private_key(pem: bytes) -> Ed25519PrivateKey:
    """Read an unencrypted private key.

    Raises:
        ValueError: it is not a key, or not an Ed25519 key.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except Exception:  # the library's errors have no common base
        raise ValueError(
            "not a private key in PEM without a passphrase (`openssl genpkey -algorithm ed25519`)"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return key


def statement(name: str, version: str, sha256: str, size: int, expires_ms: int) -> bytes:
    """The statement to sign. Canonical JSON, so that other tools can reproduce it."""
    return canonical_json(
        {
            "_type": "opamp-package",
            "name": name,
            "version": version,
            "sha256": sha256,
            "size": size,
            "expires_ms": expires_ms,
        }
    )


def problem_with(package: PublishedPackage, file: PackageFile, keys: dict[str, Ed25519PublicKey], now_ms: int) -> str:
    """Why the signature of a file is not valid; empty if it is."""
    if not file.signature:
        return f"{package.key} is not signed"
    if file.key not in keys:
        return f"{package.key} is signed with {file.key or 'an unnamed key'}, but no PackageSigningKey has that name"
    if file.expires_ms and now_ms >= file.expires_ms:
        return f"the signature of {package.key} has expired"
    if _HEX.fullmatch(file.signature) is None:
        return f"the signature of {package.key} is not an Ed25519 signature"
    signed = statement(package.name, package.version, file.sha256, file.size, file.expires_ms)
    try:
        keys[file.key].verify(bytes.fromhex(file.signature), signed)
    except InvalidSignature:
        return f"the signature of {package.key} is wrong"
    return ""

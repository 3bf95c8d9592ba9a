"""Identifiers of agents and configs, digests, and addresses. No I/O and no randomness: random bytes are an argument."""

from __future__ import annotations

import hashlib
import uuid
from typing import NewType
from urllib.parse import urlsplit

InstanceUid = NewType("InstanceUid", bytes)
"""Any 16 bytes. Version and variant are not checked, because .NET clients send a mixed-endian Guid."""

AgentId = NewType("AgentId", str)
"""The key of an agent's bucket, attempts and labels; see `relay.opamp.identity`."""

ConfigHash = NewType("ConfigHash", bytes)
"""SHA-256 of a config offer; opaque to the agent."""

UID_BYTES = 16
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


def format_uid(uid: bytes) -> str:
    """Format 16 bytes as canonical UUID text.

    Raises:
        ValueError: `uid` is not 16 bytes.
    """
    if len(uid) != UID_BYTES:
        raise ValueError(f"expected {UID_BYTES} bytes, not {len(uid)}")
    digits = uid.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_uid(text: str) -> InstanceUid | None:
    """Parse a UUID in any of its usual spellings; None if `text` is not a UUID."""
    try:
        return InstanceUid(uuid.UUID(text).bytes)
    except ValueError:
        return None


def new_instance_uid(unix_ms: int, random_bytes: bytes) -> InstanceUid:
    """Make a UUIDv7 (RFC 9562, 5.7) from a time and ten random bytes."""
    if len(random_bytes) != 10:
        raise ValueError(f"expected ten random bytes, not {len(random_bytes)}")
    raw = bytearray(unix_ms.to_bytes(6, "big") + random_bytes)
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return InstanceUid(bytes(raw))


def sha256(data: bytes) -> bytes:
    """The SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def digest64(data: bytes) -> int:
    """A 64-bit digest for shards and buckets. Evenly distributed, but not for security."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def is_secure_url(url: str) -> bool:
    """Whether a URL is https, or http on loopback: nobody on the way can read or change what is sent."""
    try:
        parts = urlsplit(url)
        is_local = parts.hostname in LOOPBACK_NAMES
    except ValueError:
        return False
    return bool(parts.hostname) and parts.scheme in (("https", "http") if is_local else ("https",))

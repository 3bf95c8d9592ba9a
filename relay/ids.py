"""Value objects that name things: agents, configs, resources. No I/O, no randomness: chance is an argument."""

from __future__ import annotations

import hashlib
import uuid
from typing import NewType

InstanceUid = NewType("InstanceUid", bytes)
"""16 bytes. Any 16 bytes: .NET clients send a mixed-endian Guid, so version and variant are not checked."""

AgentId = NewType("AgentId", str)
"""What buckets, attempts and labels are keyed by; see `relay.opamp.identity`."""

ConfigHash = NewType("ConfigHash", bytes)
"""SHA-256 over what an agent is offered; opaque to the agent."""

UID_BYTES = 16


def format_uid(uid: bytes) -> str:
    """Give the canonical UUID text of 16 bytes.

    Raises:
        ValueError: `uid` is not 16 bytes.
    """
    if len(uid) != UID_BYTES:
        raise ValueError(f"expected {UID_BYTES} bytes, not {len(uid)}")
    digits = uid.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_uid(text: str) -> InstanceUid | None:
    """Read a UUID in any of its usual spellings; None if `text` is no UUID."""
    try:
        return InstanceUid(uuid.UUID(text).bytes)
    except ValueError:
        return None


def new_instance_uid(unix_ms: int, chance: bytes) -> InstanceUid:
    """Make a UUIDv7 (RFC 9562, 5.7) from a time and ten bytes of randomness."""
    if len(chance) != 10:
        raise ValueError("expected ten random bytes")
    raw = bytearray(unix_ms.to_bytes(6, "big") + chance)
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return InstanceUid(bytes(raw))


def sha256(data: bytes) -> bytes:
    """The SHA-256 of some bytes."""
    return hashlib.sha256(data).digest()


def digest64(data: bytes) -> int:
    """A 64-bit digest for shards and buckets: well mixed, not for security."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")

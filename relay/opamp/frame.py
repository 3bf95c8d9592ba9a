"""The WebSocket frame of OpAMP: a header varint that is 0, then a protobuf message (spec: WebSocket Transport)."""

from __future__ import annotations

from relay.errors import Malformed

HEADER = b"\x00"


def decode(message: bytes) -> bytes:
    """Take the header off a WebSocket message; what is left may be empty.

    Raises:
        Malformed: no header, a truncated one, or one that is not 0 (future versions of the protocol, or legacy clients
            that send none).
    """
    if message[:1] == HEADER:
        return message[1:]
    value = 0
    for i, byte in enumerate(message[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value:
                raise Malformed(f"frame header is {value}, must be 0")
            return message[i + 1 :]
    raise Malformed("truncated frame header")


def encode(body: bytes) -> bytes:
    """Put the header before a serialised ServerToAgent."""
    return HEADER + body

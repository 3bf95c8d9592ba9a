"""The WebSocket frame of OpAMP: a header varint that is 0, then a protobuf message (spec: WebSocket Transport)."""

from __future__ import annotations

from relay.errors import Malformed

HEADER = b"\x00"


def decode(message: bytes) -> bytes:
    """Remove the header from a WebSocket message; the result may be empty.

    Raises:
        Malformed: the header is missing, truncated or not 0 (a future version of the protocol, or a legacy client that
            sends no header).
    """
    if message[:1] == HEADER:
        return message[1:]
    value = 0
    for i, byte in enumerate(message[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value:
                raise Malformed(f"the frame header is {value}; it must be 0")
            return message[i + 1 :]
    raise Malformed("the frame header is truncated")


def encode(body: bytes) -> bytes:
    """Prepend the header to a serialised ServerToAgent."""
    return HEADER + body

"""How much a message would become, before it is parsed.

A submessage may take two bytes on the wire and a hundred in memory: sixty megabytes of empty ones would become gigabytes
and stop the loop for seconds. A walk over tags and lengths counts them and ends at the limit; the bodies of configs, which
make messages large for good reasons, are skipped in one step.
"""

from __future__ import annotations

from typing import cast

from google.protobuf.descriptor import Descriptor

from relay.errors import TooLarge
from relay.pb.opamp.v1 import opamp_pb2 as pb

SMALL_BYTES = 64 << 10
"""A message of this size cannot do harm whatever it holds."""
_Fields = dict[int, Descriptor]
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_ROOT = cast(Descriptor, pb.AgentToServer.DESCRIPTOR)
_fields: dict[str, _Fields] = {}


def check(body: bytes, max_elements: int) -> None:
    """Count the fields of an AgentToServer at all depths.

    Bytes that are not protobuf are left to the parser.

    Raises:
        TooLarge: more than `max_elements`.
    """
    if len(body) > SMALL_BYTES and _count(body, max_elements) > max_elements:
        raise TooLarge(f"the message has more than {max_elements} fields")


def _submessages(descriptor: Descriptor) -> _Fields:
    found = _fields.get(descriptor.full_name)
    if found is None:
        found = _fields[descriptor.full_name] = {
            field.number: field.message_type for field in descriptor.fields if field.message_type is not None
        }
    return found


def _count(body: bytes, most: int) -> int:
    total = 0
    waiting: list[tuple[int, int, Descriptor]] = [(0, len(body), _ROOT)]
    while waiting:
        position, end, descriptor = waiting.pop()
        inside = _submessages(descriptor)
        while position < end:
            total += 1
            if total > most:
                return total
            tag, position = _varint(body, position, end)
            kind = tag & 7
            if kind == _VARINT:
                _, position = _varint(body, position, end)
            elif kind == _LENGTH:
                size, position = _varint(body, position, end)
                submessage = inside.get(tag >> 3)
                if submessage is not None and size and position + size <= end:
                    waiting.append((position, position + size, submessage))
                position += size
            elif kind == _FIXED64:
                position += 8
            elif kind == _FIXED32:
                position += 4
            else:
                break  # groups and what is no protobuf: the parser refuses it, or keeps it as it came
    return total


def _varint(body: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return value, end

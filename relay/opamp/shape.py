"""A limit on the number of fields in a message, checked before parsing.

A submessage may take two bytes on the wire and a hundred in memory: sixty megabytes of empty ones would become gigabytes
and block the event loop for seconds. A walk over tags and lengths counts the fields and stops at the limit. Config bodies,
which make messages large for good reasons, are skipped in one step.
"""

from __future__ import annotations

from typing import cast

from google.protobuf.descriptor import Descriptor

from relay.errors import TooLarge
from relay.pb.opamp.v1 import opamp_pb2 as pb

SMALL_BYTES = 64 << 10
"""A message up to this size is harmless whatever it contains."""
_Fields = dict[int, Descriptor]
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_ROOT = cast(Descriptor, pb.AgentToServer.DESCRIPTOR)
_submessages_by_type: dict[str, _Fields] = {}


def check(body: bytes, max_elements: int) -> None:
    """Check the number of fields of a serialised AgentToServer, at all depths.

    Leaves bytes that are not protobuf to the parser.

    Raises:
        TooLarge: there are more than `max_elements`.
    """
    if len(body) > SMALL_BYTES and _count(body, max_elements) > max_elements:
        raise TooLarge(f"the message has more than {max_elements} fields")


def _submessages(descriptor: Descriptor) -> _Fields:
    fields = _submessages_by_type.get(descriptor.full_name)
    if fields is None:
        fields = _submessages_by_type[descriptor.full_name] = {
            field.number: field.message_type for field in descriptor.fields if field.message_type is not None
        }
    return fields


def _count(body: bytes, limit: int) -> int:
    total = 0
    stack: list[tuple[int, int, Descriptor]] = [(0, len(body), _ROOT)]
    while stack:
        position, end, descriptor = stack.pop()
        submessages = _submessages(descriptor)
        while position < end:
            total += 1
            if total > limit:
                return total
            tag, position = _varint(body, position, end)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, position = _varint(body, position, end)
            elif wire_type == _LENGTH:
                size, position = _varint(body, position, end)
                submessage = submessages.get(tag >> 3)
                if submessage is not None and size and position + size <= end:
                    stack.append((position, position + size, submessage))
                position += size
            elif wire_type == _FIXED64:
                position += 8
            elif wire_type == _FIXED32:
                position += 4
            else:
                break  # a group or not protobuf: the parser refuses it or keeps it as unknown
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

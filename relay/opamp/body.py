"""Message bodies: decoding AgentToServer, composing ServerToAgent from encoded fields, bounded gzip.

Protobuf messages can be concatenated. An answer is the agent's own prefix (its uid) and parts that are encoded once and
shared by thousands of agents.
"""

from __future__ import annotations

import zlib

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from relay.errors import Malformed, Outcome, RelayError, TooLarge
from relay.ids import UID_BYTES
from relay.opamp import shape
from relay.pb.opamp.v1 import opamp_pb2 as pb

FALLBACK_UID = bytes.fromhex("00000000000070008000000000000000")
"""Used in HTTP answers to messages without a valid uid: an empty uid crashes Node.js clients."""

MAX_ELEMENTS = 20_000

FULL_STATE = b"\x30\x01"
"""flags = ReportFullState."""
COMPONENTS = b"\x30\x02"
"""flags = ReportAvailableComponents."""
BOTH = b"\x30\x03"
"""Both flags."""

_ERROR_TYPES = {
    Outcome.BAD_REQUEST: pb.ServerErrorResponseType_BadRequest,
    Outcome.TOO_LARGE: pb.ServerErrorResponseType_BadRequest,
    Outcome.UNAVAILABLE: pb.ServerErrorResponseType_Unavailable,
}
"""Outcome → ServerErrorResponse.type; Unknown for all others."""


def decode(body: bytes, max_elements: int = MAX_ELEMENTS) -> pb.AgentToServer:
    """Parse an AgentToServer.

    Args:
        max_elements: the most fields, at all depths, that a large message may have; see `shape`.

    Raises:
        TooLarge: it has more fields.
        Malformed: not an AgentToServer, nested deeper than protobuf allows (100), or the uid is not 16 bytes.
    """
    shape.check(body, max_elements)
    try:
        message = pb.AgentToServer.FromString(body)
    except (DecodeError, RecursionError):
        raise Malformed("not an AgentToServer message") from None
    if len(message.instance_uid) != UID_BYTES:
        raise Malformed(f"instance_uid has {len(message.instance_uid)} bytes; it must have {UID_BYTES}")
    return message


def uid_field(uid: bytes) -> bytes:
    """ServerToAgent.instance_uid, encoded."""
    return b"\x0a\x10" + uid


def capabilities_field(bits: int) -> bytes:
    """ServerToAgent.capabilities, encoded."""
    return pb.ServerToAgent(capabilities=bits).SerializeToString()


def identification_field(new_uid: bytes) -> bytes:
    """ServerToAgent.agent_identification, encoded."""
    return pb.ServerToAgent(agent_identification=pb.AgentIdentification(new_instance_uid=new_uid)).SerializeToString()


def error_body(uid: bytes, error: RelayError) -> bytes:
    """A complete ServerToAgent with only an error_response; `uid` is replaced if it is not 16 bytes."""
    response = pb.ServerErrorResponse(
        type=_ERROR_TYPES.get(error.outcome, pb.ServerErrorResponseType_Unknown), error_message=str(error)
    )
    if error.retry_after_s is not None:
        response.retry_info.retry_after_nanoseconds = int(error.retry_after_s * 1e9)
    answer_uid = uid if len(uid) == UID_BYTES else FALLBACK_UID
    return pb.ServerToAgent(instance_uid=answer_uid, error_response=response).SerializeToString()


def uid_of_malformed(body: bytes) -> bytes:
    """The uid at the start of a message that cannot be parsed; empty if there is none."""
    return body[2:18] if body[:2] == b"\x0a\x10" and len(body) >= 18 else b""


def unknown_fields(message: pb.AgentToServer) -> bytes:
    """Top-level fields that this schema does not know, as received; empty for nearly every message."""
    if len(UnknownFieldSet(message)) == 0:
        return b""
    rest = pb.AgentToServer()
    rest.CopyFrom(message)
    for field, _ in message.ListFields():
        rest.ClearField(field.name)
    return rest.SerializeToString()


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompress gzip, never holding more than `max_bytes` of output.

    Raises:
        Malformed: not gzip, truncated, or followed by other bytes.
        TooLarge: the output would exceed `max_bytes`.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        out = stream.decompress(data, max_bytes)
        if not stream.eof and (stream.unconsumed_tail or stream.decompress(b"", 1)):
            raise TooLarge(f"the message is larger than {max_bytes} bytes after decompression")
    except zlib.error:
        raise Malformed("the body is not gzip") from None
    if not stream.eof or stream.unused_data:
        raise Malformed("the gzip body is truncated or has trailing bytes")
    return out


def deflate(data: bytes) -> bytes:
    """Compress with gzip at its fastest level: configs are text, and latency matters."""
    stream = zlib.compressobj(level=1, wbits=31)
    return stream.compress(data) + stream.flush()

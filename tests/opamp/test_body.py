import contextlib
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Duplicate, Malformed, Overloaded, TooLarge
from relay.opamp import body
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = bytes(range(16))


@pytest.mark.parametrize("size", [0, 15, 17, 26])
def test_uid_must_have_16_bytes(size: int) -> None:
    with pytest.raises(Malformed, match=f"has {size} bytes"):
        body.decode(pb.AgentToServer(instance_uid=b"u" * size).SerializeToString())


def test_health_nested_past_the_protobuf_limit_is_malformed() -> None:
    health = pb.ComponentHealth(healthy=True)
    for _ in range(200):
        outer = pb.ComponentHealth()
        outer.component_health_map["x"].CopyFrom(health)
        health = outer
    with contextlib.suppress(Exception):
        data = pb.AgentToServer(instance_uid=UID, health=health).SerializeToString()
        with pytest.raises(Malformed):
            body.decode(data)
    # Built by hand: a map entry is {1: key, 2: value}, and field 6 of ComponentHealth holds the map.
    data = b""
    for _ in range(200):
        entry = b"\x0a\x01x" + b"\x12" + _varint(len(data)) + data
        data = b"\x32" + _varint(len(entry)) + entry
    with pytest.raises(Malformed):
        body.decode(b"\x0a\x10" + UID + b"\x2a" + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.binary(max_size=200))
def test_only_documented_errors_are_raised(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        body.decode(data)


def test_split_fields_merge_into_one_message() -> None:
    joined = body.uid_field(UID) + body.FULL_STATE + body.capabilities_field(7) + body.identification_field(b"n" * 16)
    message = pb.ServerToAgent.FromString(joined)
    assert (message.instance_uid, message.flags, message.capabilities) == (UID, 1, 7)
    assert message.agent_identification.new_instance_uid == b"n" * 16


def test_errors_carry_message_and_retry_time() -> None:
    message = pb.ServerToAgent.FromString(body.error_body(UID, Overloaded("full", retry_after_s=30)))
    assert message.instance_uid == UID
    assert message.error_response.type == pb.ServerErrorResponseType_Unavailable
    assert message.error_response.retry_info.retry_after_nanoseconds == 30_000_000_000
    bad = pb.ServerToAgent.FromString(body.error_body(b"", Malformed("no")))
    assert bad.instance_uid == body.FALLBACK_UID
    assert bad.error_response.type == pb.ServerErrorResponseType_BadRequest
    assert not bad.error_response.HasField("retry_info")
    bug = pb.ServerToAgent.FromString(body.error_body(UID, Duplicate("x")))
    assert bug.error_response.type == pb.ServerErrorResponseType_Unknown


def test_uid_of_an_unreadable_message() -> None:
    assert body.uid_of_malformed(b"\x0a\x10" + UID + b"\xff") == UID
    assert body.uid_of_malformed(b"\xff\xff") == b""


def test_unknown_fields_survive() -> None:
    known = pb.AgentToServer(instance_uid=UID, sequence_num=3)
    assert body.unknown_fields(known) == b""
    later = b"\xba\x06\x03new"  # field 103
    message = body.decode(known.SerializeToString() + later)
    assert body.unknown_fields(message) == later


def test_gzip_round_trip() -> None:
    data = b"config " * 1000
    assert body.inflate(body.deflate(data), 10_000) == data
    assert body.inflate(gzip.compress(b""), 10) == b""
    assert body.inflate(gzip.compress(b"x" * 10), 10) == b"x" * 10


def test_gzip_bomb_is_stopped_at_the_limit() -> None:
    with pytest.raises(TooLarge):
        body.inflate(gzip.compress(b"\0" * 10_000_000), 1_000_000)


@pytest.mark.parametrize("data", [b"", b"plain", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"more"])
def test_incomplete_gzip_streams_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        body.inflate(data, 1000)

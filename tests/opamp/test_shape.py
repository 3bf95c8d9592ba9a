import gzip

import pytest

from relay.errors import Malformed, TooLarge
from relay.opamp import body, shape
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = bytes(range(16))


def message(**fields: object) -> bytes:
    return pb.AgentToServer(instance_uid=UID, **fields).SerializeToString()  # type: ignore[arg-type]


def test_millions_of_empty_fields_are_refused_before_parsing() -> None:
    for inner in (b"\x0a\x00", b"\x12\x00"):
        description = inner * 4_000_000
        attack = pb.AgentToServer(instance_uid=UID).SerializeToString()
        attack += b"\x1a" + _varint(len(description)) + description
        assert len(gzip.compress(attack)) < 20_000
        with pytest.raises(TooLarge, match="more than 20000 fields"):
            body.decode(attack, 20_000)
    with pytest.raises(TooLarge):
        body.decode(message() + b"\x3a\x00" * 100_000, 20_000)


def test_large_content_with_few_fields_passes() -> None:
    config = pb.EffectiveConfig()
    config.config_map.config_map["a"].body = b"\x0a\x00" * 5_000_000
    large = message(effective_config=config)
    assert body.decode(large, 100).effective_config == config
    many = pb.AgentDescription(non_identifying_attributes=[{"key": f"k{i}"} for i in range(10_000)])
    assert body.decode(message(agent_description=many), 20_000 + 10).agent_description == many


def test_small_messages_are_not_counted() -> None:
    many = pb.AgentDescription(non_identifying_attributes=[{"key": "k"}] * 1000)
    assert body.decode(message(agent_description=many), 10).agent_description == many


@pytest.mark.parametrize(
    "tail", [b"\x0b" + b"\xff" * 70_000, b"\xff" * 70_000, b"\x0a\xff\xff\xff\x7f" + b"x" * 70_000]
)
def test_invalid_protobuf_is_left_to_the_parser(tail: bytes) -> None:
    shape.check(tail, 1000)
    with pytest.raises(Malformed):
        body.decode(tail, 1000)


def test_every_wire_type_counts_once() -> None:
    plain = b"\x08\x01" + b"\x11" + bytes(8) + b"\x15" + bytes(4) + b"\x1a\x00"
    padding = b"\xfa\x3f" + _varint(shape.SMALL_BYTES) + bytes(shape.SMALL_BYTES)
    shape.check(plain + padding, 5)
    with pytest.raises(TooLarge):
        shape.check(plain + padding, 4)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])

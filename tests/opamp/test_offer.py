import pytest

from relay.ids import ConfigHash
from relay.opamp.offer import FORGIVEN, Failure, OfferedSlot, encode
from relay.pb.opamp.v1 import opamp_pb2 as pb


def test_offer_is_the_encoded_field_in_any_order() -> None:
    slots = {"b": (b"2", "text/yaml"), "": (b"1", "text/yaml")}
    offer = encode(ConfigHash(b"h" * 32), slots, (OfferedSlot("", "x", b"c"),))
    turned = encode(ConfigHash(b"h" * 32), dict(reversed(slots.items())), (OfferedSlot("", "x", b"c"),))
    assert offer.field == turned.field
    message = pb.ServerToAgent.FromString(offer.field)
    assert message.remote_config.config_hash == b"h" * 32
    assert message.remote_config.config.config_map[""].body == b"1"
    assert message.remote_config.config.config_map["b"].content_type == "text/yaml"


def test_empty_config_map_is_never_offered() -> None:
    with pytest.raises(ValueError, match="never offered"):
        encode(ConfigHash(b""), {}, ())


def test_failure_without_message_and_time() -> None:
    failure = Failure("", b"c", 2, "no such receiver", 5)
    assert failure.attempt == ("", b"c", 2)
    assert failure._replace(forgiven=True).attempt == ("", b"c", FORGIVEN)

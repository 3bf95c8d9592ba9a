from relay.ids import format_uid
from relay.opamp import identity
from relay.pb.opamp.v1 import anyvalue_pb2
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = bytes(range(16))


def description(identifying: dict[str, str], other: dict[str, str] | None = None) -> pb.AgentDescription:
    message = pb.AgentDescription()
    for key, value in identifying.items():
        message.identifying_attributes.add(key=key).value.string_value = value
    for key, value in (other or {}).items():
        message.non_identifying_attributes.add(key=key).value.string_value = value
    return message


def test_identifying_attribute_wins() -> None:
    message = description({"a": "identifying"}, {"a": "other", "b": "x"})
    assert identity.attributes(message.SerializeToString()) == {"a": "identifying", "b": "x"}


def test_every_kind_of_value() -> None:
    value = anyvalue_pb2.AnyValue
    items = anyvalue_pb2.ArrayValue(values=[value(int_value=1), value(bool_value=True)])
    pairs = anyvalue_pb2.KeyValueList(values=[anyvalue_pb2.KeyValue(key="k", value=value(double_value=0.5))])
    assert identity.value_of(value(array_value=items)) == [1, True]
    assert identity.value_of(value(kvlist_value=pairs)) == {"k": 0.5}
    assert identity.value_of(value(bytes_value=b"\x00")) == "AA=="
    assert identity.value_of(value()) is None
    assert identity.value_of(value(double_value=float("nan"))) == "nan"
    assert identity.value_of(value(double_value=float("-inf"))) == "-inf"


def test_agent_id_is_the_service_instance_id() -> None:
    assert identity.agent_id(description({"service.instance.id": "a1"}), UID) == "a1"
    assert identity.agent_id(description({}, {"service.instance.id": "a2"}), UID) == "a2"
    assert identity.agent_id(description({"service.instance.id": ""}), UID) == format_uid(UID)
    assert identity.instance_id(description({"service.instance.id": "a1"}).SerializeToString()) == "a1"
    assert identity.instance_id(b"") == ""


def test_only_requested_attributes() -> None:
    message = description({"a": "1", "b": "2"}, {"c": "3"}).SerializeToString()
    assert identity.attributes(message, frozenset({"a", "c"})) == {"a": "1", "c": "3"}

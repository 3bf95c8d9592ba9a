from typing import Any

from relay.ids import InstanceUid
from relay.opamp.record import Change, Record
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = InstanceUid(bytes(range(16)))


def report(**parts: Any) -> pb.AgentToServer:
    return pb.AgentToServer(instance_uid=UID, **parts)


def described(name: str) -> pb.AgentDescription:
    message = pb.AgentDescription()
    message.identifying_attributes.add(key="service.instance.id").value.string_value = name
    return message


def test_what_is_left_out_has_not_changed_and_what_is_there_replaces() -> None:
    record = Record(UID, 0)
    first = report(capabilities=3, agent_description=described("a"), health=pb.ComponentHealth(healthy=True))
    assert record.merge(first, full=True) == Change.CAPABILITIES | Change.DESCRIPTION | Change.HEALTH
    assert record.agent_id == "a"
    assert record.merge(report(), full=False) == Change.NONE
    assert record.merge(first, full=False) == Change.NONE
    assert record.merge(report(health=pb.ComponentHealth(healthy=False, last_error="x")), full=False) == Change.HEALTH
    assert record.healthy() is False
    assert record.capabilities == 3


def test_capabilities_of_zero_mean_as_before_and_unknown_bits_stay() -> None:
    record = Record(UID, 0)
    record.merge(report(capabilities=1 << 40), full=True)
    record.merge(report(capabilities=0), full=False)
    assert record.capabilities == 1 << 40


def test_an_empty_health_is_unhealthy_and_none_is_unknown() -> None:
    record = Record(UID, 0)
    assert record.healthy() is None
    assert record.merge(report(health=pb.ComponentHealth()), full=False) == Change.HEALTH
    assert record.healthy() is False


def test_full_state_forgets_what_it_leaves_out() -> None:
    record = Record(UID, 0)
    status = pb.RemoteConfigStatus(last_remote_config_hash=b"h", status=pb.RemoteConfigStatuses_APPLIED)
    effective = pb.EffectiveConfig(config_map=pb.AgentConfigMap())
    message = report(agent_description=described("a"), remote_config_status=status, effective_config=effective)
    message.MergeFromString(b"\xba\x06\x03new")
    record.merge(message, full=True)
    assert record.unknown_fields == b"\xba\x06\x03new"
    changes = record.merge(report(agent_description=described("a")), full=True)
    assert changes == Change.CONFIG_STATUS | Change.EFFECTIVE_CONFIG | Change.OTHER
    assert record.config_status().last_remote_config_hash == b""
    assert record.effective_config_digest == b""
    assert record.unknown_fields == b""


def test_a_failed_config_is_remembered_even_if_applied_is_said_later() -> None:
    record = Record(UID, 0)
    failed = pb.RemoteConfigStatus(last_remote_config_hash=b"bad", status=pb.RemoteConfigStatuses_FAILED)
    record.merge(report(remote_config_status=failed), full=False)
    for config_hash in (b"old", b"bad"):
        applied = pb.RemoteConfigStatus(last_remote_config_hash=config_hash, status=pb.RemoteConfigStatuses_APPLIED)
        record.merge(report(remote_config_status=applied), full=False)
        assert record.failed_hash == b"bad"


def test_a_record_survives_the_disk() -> None:
    record = Record(UID, 5)
    record.merge(report(capabilities=3, agent_description=described("a"), health=pb.ComponentHealth()), full=True)
    record.sequence_num = 9
    record.connected, record.transport, record.session_started_ms = True, "websocket", 7
    record.assignments = ("prod",)
    back = Record.from_stored(record.stored(record.state(), sequence_exact=False))
    assert not back.connected
    back.connected = True
    assert back.state() == record.state()
    assert (back.sequence_num, back.sequence_exact) == (9, False)
    assert back.health == b""
    assert back.remote_config_status is None

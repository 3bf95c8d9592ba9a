from typing import Any

from relay.ids import AgentId, InstanceUid, format_uid
from relay.opamp.offer import Failure, OfferedSlot
from relay.opamp.packages import PackagesOffer
from relay.opamp.record import Change, Credential, Record
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = InstanceUid(bytes(range(16)))


def report(**parts: Any) -> pb.AgentToServer:
    return pb.AgentToServer(instance_uid=UID, **parts)


def described(name: str) -> pb.AgentDescription:
    message = pb.AgentDescription()
    message.identifying_attributes.add(key="service.instance.id").value.string_value = name
    return message


def test_merge_keeps_omitted_fields_and_replaces_present_ones() -> None:
    record = Record(UID, 0)
    first = report(capabilities=3, agent_description=described("a"), health=pb.ComponentHealth(healthy=True))
    assert record.merge(first, full=True).changes == Change.CAPABILITIES | Change.DESCRIPTION | Change.HEALTH
    assert record.agent_id == "a"
    assert record.merge(report(), full=False).changes == Change.NONE
    assert record.merge(first, full=False).changes == Change.NONE
    assert (
        record.merge(report(health=pb.ComponentHealth(healthy=False, last_error="x")), full=False).changes
        == Change.HEALTH
    )
    assert record.healthy() is False
    assert record.capabilities == 3


def test_zero_capabilities_mean_unchanged_and_unknown_bits_stay() -> None:
    record = Record(UID, 0)
    record.merge(report(capabilities=1 << 40), full=True)
    record.merge(report(capabilities=0), full=False)
    assert record.capabilities == 1 << 40


def test_empty_health_is_unhealthy_and_no_health_is_unknown() -> None:
    record = Record(UID, 0)
    assert record.healthy() is None
    assert record.merge(report(health=pb.ComponentHealth()), full=False).changes == Change.HEALTH
    assert record.healthy() is False


def test_full_state_clears_omitted_fields() -> None:
    record = Record(UID, 0)
    status = pb.RemoteConfigStatus(last_remote_config_hash=b"h", status=pb.RemoteConfigStatuses_APPLIED)
    effective = pb.EffectiveConfig(config_map=pb.AgentConfigMap())
    message = report(agent_description=described("a"), remote_config_status=status, effective_config=effective)
    message.MergeFromString(b"\xba\x06\x03new")
    record.merge(message, full=True)
    assert record.unknown_fields == b"\xba\x06\x03new"
    changes = record.merge(report(agent_description=described("a")), full=True).changes
    assert changes == Change.CONFIG_STATUS | Change.EFFECTIVE_CONFIG | Change.OTHER
    assert record.config_status().last_remote_config_hash == b""
    assert record.effective_config_digest == b""
    assert record.unknown_fields == b""


def test_failed_config_is_remembered_despite_a_later_applied() -> None:
    record = Record(UID, 0)
    failed = pb.RemoteConfigStatus(last_remote_config_hash=b"bad", status=pb.RemoteConfigStatuses_FAILED)
    record.merge(report(remote_config_status=failed), full=False)
    for config_hash in (b"old", b"bad"):
        applied = pb.RemoteConfigStatus(last_remote_config_hash=config_hash, status=pb.RemoteConfigStatuses_APPLIED)
        record.merge(report(remote_config_status=applied), full=False)
        assert record.config.failed_hash == b"bad"


def test_record_round_trip() -> None:
    record = Record(UID, 5)
    record.merge(report(capabilities=3, agent_description=described("a"), health=pb.ComponentHealth()), full=True)
    record.sequence_num = 9
    record.connected, record.transport, record.session_started_ms = True, "websocket", 7
    record.config.offer(b"h", (OfferedSlot("", "prod", b"c"),), True)
    back = Record.from_stored(record.stored(record.state(), sequence_exact=False))
    assert not back.connected
    back.connected = True
    assert back.state() == record.state()
    assert (back.sequence_num, back.sequence_exact) == (9, False)
    assert back.health == b""
    assert back.remote_config_status is None


def offered(record: Record, *slots: OfferedSlot, config_hash: bytes = b"h") -> None:
    record.offer_config(config_hash, slots)
    record.config.offered_at_ms = 1


def says(record: Record, status: int, config_hash: bytes = b"h", error: str = "") -> None:
    said = pb.RemoteConfigStatus(last_remote_config_hash=config_hash, status=status, error_message=error)  # type: ignore[arg-type]
    record.merge(pb.AgentToServer(instance_uid=record.instance_uid, remote_config_status=said), full=False)


APPLIED, APPLYING, FAILED = (
    pb.RemoteConfigStatuses_APPLIED,
    pb.RemoteConfigStatuses_APPLYING,
    pb.RemoteConfigStatuses_FAILED,
)
A1, A2, B1 = OfferedSlot("", "a", b"1"), OfferedSlot("", "a", b"2", 3), OfferedSlot("b", "b", b"1")


def test_failure_blames_the_slots_that_changed() -> None:
    record = Record(UID, 0)
    offered(record, A1, B1)
    says(record, APPLIED)
    assert record.config.applied == (A1, B1)
    record.cohort = object()
    offered(record, A2, B1, config_hash=b"i")
    says(record, FAILED, b"i", "no such receiver")
    assert record.config.failures == (Failure("", b"2", 3, "no such receiver", 0),)
    assert record.cohort is None
    offered(record, A1, B1, config_hash=b"h")
    says(record, APPLIED, b"h")
    assert record.config.failures[0].content_hash == b"2", "remembered whatever is applied afterwards"


def test_failure_of_all_slots_blames_all_and_memory_is_bounded() -> None:
    record = Record(UID, 0)
    offered(record, A1, B1)
    says(record, FAILED, error="x" * 5000)
    assert [f.slot for f in record.config.failures] == ["", "b"]
    assert len(record.config.failures[0].error_message) == 1000
    for number in range(20):
        offered(record, OfferedSlot("", "a", bytes([number])), config_hash=bytes([number]))
        says(record, FAILED, bytes([number]))
    assert len(record.config.failures) == 22
    says(record, APPLIED, b"other")
    says(record, FAILED, b"another")
    assert len(record.config.failures) == 22, "of something that was not the offer: nobody knows what it was made of"


def test_two_undecided_restarts_are_a_failure() -> None:
    record = Record(UID, 0)
    record.capabilities = 0x1002
    offered(record, A1)
    record.note_restart()
    assert not record.config.failures
    says(record, APPLYING)
    record.note_restart()
    assert record.config.failures[0].error_message == "restarted 2 times without applying it"
    assert not record.config.undecided
    record.note_restart()
    assert len(record.config.failures) == 1


def test_agents_without_status_or_change_may_restart() -> None:
    mute = Record(UID, 0)
    mute.capabilities = 0x2
    offered(mute, A1)
    forgetful = Record(UID, 0)
    forgetful.capabilities = 0x1002
    offered(forgetful, A1)
    says(forgetful, APPLIED)
    says(forgetful, pb.RemoteConfigStatuses_UNSET, b"")
    for record in (mute, forgetful):
        for _ in range(3):
            record.note_restart()
        assert not record.config.failures


def test_late_failure_of_the_previous_offer() -> None:
    record = Record(UID, 0)
    offered(record, A1)
    offered(record, A2, config_hash=b"i")
    says(record, FAILED, b"h", "too late")
    assert [f.content_hash for f in record.config.failures] == [b"1"]


def test_decided_agent_may_restart() -> None:
    record = Record(UID, 0)
    record.capabilities = 0x1002
    record.note_restart()
    offered(record, A1)
    record.note_restart()
    says(record, APPLIED)
    record.note_restart()
    record.note_restart()
    assert not record.config.failures


def test_failures_survive_a_new_uid_and_a_node_restart() -> None:
    old = Record(UID, 0)
    offered(old, A1)
    says(old, FAILED, error="no")
    old.config.stamp(7)
    old.config.baseline = (True,)
    new = Record(UID, 0)
    new.inherit(old)
    assert (new.config.failures, new.config.slots, new.config.hash) == (old.config.failures, (A1,), b"h")
    back = Record.from_stored(new.stored(new.state(), sequence_exact=True))
    assert (back.config.failures, back.config.slots, back.config.applied) == (new.config.failures, (A1,), ())
    assert (back.config.baseline, back.config.offered_at_ms, back.config.restarts) == ((True,), 1, 0)


SET = PackagesOffer(b"set", (), (OfferedSlot("", "p", b"c"),), (("agent", b"h"),))


def says_of_packages(record: Record, status: int, held: bytes = b"") -> None:
    said = pb.PackageStatuses(server_provided_all_packages_hash=b"set")
    said.packages["agent"].status = status  # type: ignore[assignment]
    said.packages["agent"].agent_has_hash = held
    record.merge(pb.AgentToServer(instance_uid=record.instance_uid, package_statuses=said), full=False)


def test_packages_are_remembered_beside_configs() -> None:
    record = Record(UID, 0)
    assert record.packages_reported() == b""
    offered(record, A1)
    record.offer_packages(SET)
    assert record.packages_reported() == b""
    assert record.offered_slots == (A1, *SET.slots)
    says_of_packages(record, pb.PackageStatusEnum_InstallFailed)
    says_of_packages(record, pb.PackageStatusEnum_Installing)
    record.cohort = object()
    says_of_packages(record, pb.PackageStatusEnum_InstallFailed)
    assert record.cohort is None
    assert [f.content_hash for f in record.failures] == [b"c"]
    assert record.healthy_before(b"c") is None
    assert record.healthy_before(b"unknown") is None
    back = Record.from_stored(record.stored(record.state(), sequence_exact=True))
    assert back.packages is not None
    assert (back.packages.failed_hash, back.packages_reported(), back.failures) == (b"set", b"set", record.failures)
    heir = Record(UID, 0)
    heir.inherit(record)
    assert heir.failures == record.failures


def test_preinstalled_packages() -> None:
    record = Record(UID, 0)
    says_of_packages(record, pb.PackageStatusEnum_Installed, b"h")
    assert record.packages_reported() == b"set"
    assert record.offer_packages(SET, held=True)
    assert record.packages is not None
    assert record.runs(b"c")
    assert not record.runs(b"other")


def test_agent_without_instance_id_is_known_by_its_uid() -> None:
    record = Record(UID, 0)
    record.cohort = object()
    record.use_uid_as_id()
    assert (record.agent_id, record.cohort) == (format_uid(UID), None)
    record.agent_id = AgentId("a")
    record.use_uid_as_id()
    assert record.agent_id == "a"


def test_component_list_has_hash_and_digest() -> None:
    record = Record(UID, 0)
    alone = report(available_components=pb.AvailableComponents(hash=b"1"))
    assert record.merge(alone, full=True).changes == Change.OTHER
    assert (record.merge(alone, full=True).changes, record.components_digest) == (Change.NONE, b"")
    whole = pb.AvailableComponents(hash=b"1")
    whole.components["receivers"].sub_component_map["otlp"].SetInParent()
    assert record.merge(report(available_components=whole), full=False).changes == Change.COMPONENTS
    assert record.merge(report(available_components=whole), full=False).changes == Change.NONE
    assert record.components_digest
    assert record.merge(report(), full=True).changes == Change.OTHER
    assert (record.available_components, record.components_digest) == (None, b"")


def test_repeated_effective_config_is_no_change() -> None:
    record = Record(UID, 0)
    effective = pb.EffectiveConfig(config_map=pb.AgentConfigMap())
    assert record.merge(report(effective_config=effective), full=False).changes == Change.EFFECTIVE_CONFIG
    assert record.merge(report(effective_config=effective), full=False).changes == Change.NONE


def test_failure_reported_before_the_offer_is_known() -> None:
    record = Record(UID, 0)
    failed = pb.RemoteConfigStatus(last_remote_config_hash=b"h", status=pb.RemoteConfigStatuses_FAILED)
    record.merge(report(remote_config_status=failed), full=True)
    slots = (OfferedSlot("", "a", b"c"),)
    assert record.note_earlier_failure(b"h", slots)
    assert [failure.content_hash for failure in record.failures] == [b"c"]
    assert not record.note_earlier_failure(b"h", slots), "it is known now"
    assert not record.note_earlier_failure(b"other", slots)


def test_last_reported_packages() -> None:
    record = Record(UID, 0)
    statuses = pb.PackageStatuses(server_provided_all_packages_hash=b"set")
    record.merge(report(package_statuses=statuses), full=True)
    assert (record.packages_reported(), record.installed) == (b"set", ())
    record.offer_packages(PackagesOffer(b"set", (), (), ()))
    assert record.packages_reported() == b"set"


def test_health_before_an_offer() -> None:
    record = Record(UID, 0)
    record.merge(report(health=pb.ComponentHealth(healthy=True)), full=True)
    record.offer_config(b"h", (OfferedSlot("", "a", b"c"), OfferedSlot("b", "a", b"d")))
    assert (record.healthy_before(b"d"), record.healthy_before(b"x")) == (True, None)
    record.offer_packages(PackagesOffer(b"set", (), (OfferedSlot("", "p", b"e"),), ()))
    assert record.healthy_before(b"e") is True
    assert not record.runs(b"e")


def test_agent_without_config_reports_is_not_judged_by_silence() -> None:
    silent, telling = Record(UID, 0), Record(UID, 0)
    telling.merge(report(capabilities=0x1003), full=True)
    for record in (silent, telling):
        record.offer_config(b"h", (OfferedSlot("", "a", b"c"),))
        record.cohort = object()
        record.note_restart()
        record.note_restart()
    assert (len(silent.failures), silent.cohort is None) == (0, False)
    assert (len(telling.failures), telling.cohort is None) == (1, True)


def test_record_moves_to_another_uid() -> None:
    old, new, bare = Record(UID, 5), Record(UID, 9), Record(UID, 9)
    old.offer_config(b"h", (OfferedSlot("", "a", b"c"),))
    old.offer_packages(PackagesOffer(b"set", (), (), ()))
    status = pb.RemoteConfigStatus(last_remote_config_hash=b"h", status=pb.RemoteConfigStatuses_APPLIED)
    new.merge(report(remote_config_status=status), full=True)
    new.inherit(old)
    assert (new.first_seen_ms, new.config.status, new.packages is not None) == (5, "APPLIED", True)
    bare.inherit(Record(UID, 3))
    assert (bare.first_seen_ms, bare.packages) == (3, None)


def test_repeated_offers_and_reports_change_nothing() -> None:
    record = Record(UID, 0)
    slots = (OfferedSlot("", "a", b"c"),)
    assert record.offer_config(b"h", slots)
    assert not record.offer_config(b"h", slots)
    for word in (pb.RemoteConfigStatuses_APPLYING, pb.RemoteConfigStatuses_APPLIED):
        record.cohort = kept = object()
        status = pb.RemoteConfigStatus(last_remote_config_hash=b"h", status=word)
        record.merge(report(remote_config_status=status), full=False)
        assert record.cohort is kept, "nothing failed"
    offer = PackagesOffer(b"set", (), (OfferedSlot("", "p", b"e"),), ())
    record.offer_packages(offer)
    assert not record.offer_packages(offer)


OWN = Credential("s", "agent-001", "jwt", "t-1", '{"team":"a"}', 7000)
SHARED = Credential("web", "", "api_key", "key-1", "", 0)


def test_credential_of_one_agent_proves_its_id() -> None:
    record = Record(UID, 0)
    record.cohort = object()
    assert record.adopt(OWN) == Change.OTHER
    assert (record.agent_id, record.id_proved) == ("agent-001", True)
    assert not record.cohort, "its labels are others now"
    assert record.merge(report(agent_description=described("its-own-word")), full=True).changes == Change.DESCRIPTION
    assert (record.agent_id, record.known_as) == ("agent-001", "agent-001")
    assert record.adopt(OWN) == Change.NONE


def test_agent_id_beside_a_shared_credential_counts_within_its_subject() -> None:
    record, other = Record(UID, 0), Record(UID, 0)
    for one, credential in ((record, SHARED), (other, SHARED._replace(subject="db"))):
        one.adopt(credential)
        one.merge(report(agent_description=described("agent-001")), full=True)
    assert (record.agent_id, record.id_proved) == ("agent-001", False)
    assert len({record.known_as, other.known_as, "agent-001"}) == 3


def test_record_belongs_to_its_first_owner() -> None:
    record = Record(UID, 0)
    assert record.belongs_to(OWN)
    assert record.belongs_to(None)
    record.adopt(OWN)
    assert record.belongs_to(OWN._replace(subject="renewed", id="t-2"))
    assert record.belongs_to(None), "the node asks for no credentials"
    assert not record.belongs_to(OWN._replace(agent_id="other"))
    assert not record.belongs_to(Credential("agent-001", "", "api_key", "k", "", 0)), "shared, though of that name"


def test_credential_is_stored_and_reported() -> None:
    for credential in (OWN, SHARED, None):
        record = Record(UID, 0)
        record.adopt(credential)
        back = Record.from_stored(record.stored(record.state(), sequence_exact=True))
        assert back.credential == credential
        assert back.state() == record.state()

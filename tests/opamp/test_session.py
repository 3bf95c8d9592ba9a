"""Playbooks: these reports at these times, exactly these replies."""

from __future__ import annotations

from typing import Any

import pytest

from relay.ids import ConfigHash, InstanceUid
from relay.opamp import session as sessions
from relay.opamp.offer import Offer, OfferedSlot, WithheldSlot, encode
from relay.opamp.packages import OfferedPackage, PackagesOffer
from relay.opamp.packages import encode as encode_packages
from relay.opamp.record import Change, Credential, Record
from relay.opamp.session import Services, Session
from relay.pb.opamp.v1 import opamp_pb2 as pb

UID = InstanceUid(bytes(range(16)))
ALL = 0x3807
ONE, TWO = (encode(ConfigHash(n * 32), {"": (n, "text/yaml")}, (OfferedSlot("", "a", n * 32),)) for n in (b"1", b"2"))
Status = pb.RemoteConfigStatus


class World:
    """A session and the node around it, controlled by a test."""

    def __init__(self, record: Record | None = None, header: bytes = b"") -> None:
        self.offer: Offer | None = None
        self.packages: PackagesOffer | None = None
        self.permits = 100
        self.old: Record | None = None
        self.withheld: tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]] = ((), ())
        self.record = record or Record(UID, 0)
        services = Services(
            decide=lambda _: self.offer,
            decide_packages=lambda _: self.packages,
            packages_field=lambda _, offer: encode_packages(offer, lambda sha256: f"http://here/{sha256.hex()}"),
            fresh_uid=lambda: b"f" * 16,
            may_ask=self.may_ask,
            predecessor=lambda _: self.old,
            withheld=lambda _: self.withheld,
        )
        self.session = Session(self.record, services, header)
        self.sequence = -1
        self.changes = Change.NONE
        self.predecessor: Record | None = None
        self.credential: Credential | None = None

    def may_ask(self, now: float) -> bool:
        self.permits -= 1
        return self.permits >= 0

    def report(self, now: float = 0.0, *, skip: int = 0, **parts: Any) -> pb.ServerToAgent:
        self.sequence += 1 + skip
        parts.setdefault("capabilities", ALL)
        message = pb.AgentToServer(instance_uid=UID, sequence_num=self.sequence, **parts)
        reply = self.session.report(message, now, self.credential)
        self.changes, self.predecessor = reply.changes, reply.predecessor
        answer = pb.ServerToAgent.FromString(reply.body)
        assert answer.instance_uid == UID
        return answer

    def hello(self, now: float = 0.0, **parts: Any) -> pb.ServerToAgent:
        parts.setdefault("remote_config_status", Status())
        return self.report(now, agent_description=described(), **parts)


def described(name: str = "a") -> pb.AgentDescription:
    message = pb.AgentDescription()
    message.identifying_attributes.add(key="service.instance.id").value.string_value = name
    return message


def applied(offer: Offer) -> Status:
    return Status(last_remote_config_hash=offer.config_hash, status=pb.RemoteConfigStatuses_APPLIED)


def wants_full(answer: pb.ServerToAgent) -> bool:
    return bool(answer.flags & pb.ServerToAgentFlags_ReportFullState)


# ---- acknowledging


def test_first_answer_has_server_capabilities_and_later_ones_do_not() -> None:
    world = World()
    assert world.hello() == pb.ServerToAgent(instance_uid=UID, capabilities=0x1F)
    assert world.changes & Change.CONNECT
    assert world.report() == pb.ServerToAgent(instance_uid=UID)
    assert world.changes == Change.NONE


def test_only_heartbeats_take_the_short_path() -> None:
    world = World(header=b"\0")
    world.hello()
    message = pb.AgentToServer(instance_uid=UID, sequence_num=1, capabilities=ALL)
    wire = b"\0" + message.SerializeToString()
    assert world.session.heartbeat(wire, 5.0) == b"\0" + pb.ServerToAgent(instance_uid=UID).SerializeToString()
    assert (world.record.sequence_num, world.session.last_seen) == (1, 5.0)
    assert world.session.heartbeat(wire, 6.0) is None, "the same sequence again"
    message.sequence_num = 2
    assert world.session.heartbeat(message.SerializeToString(), 6.0) is None, "without the header"
    message.health.healthy = True
    assert world.session.heartbeat(b"\0" + message.SerializeToString(), 6.0) is None, "with news"


@pytest.mark.parametrize("start", [0, 126, 16_382, 16_383, 2**40, 2**64 - 6])
def test_short_path_handles_every_length_of_the_sequence(start: int) -> None:
    world = World()
    world.hello()
    world.record.sequence_num = start - 1
    world.sequence = start - 1
    world.report()
    for number in range(start + 1, start + 5):
        message = pb.AgentToServer(instance_uid=UID, sequence_num=number, capabilities=ALL)
        assert world.session.heartbeat(message.SerializeToString(), 0.0) is not None
    assert world.record.sequence_num == start + 4


def test_short_path_is_off_while_messages_wait() -> None:
    world = World()
    world.hello()
    world.offer = ONE
    assert world.session.consider(1.0) == Change.OFFERED
    beat = pb.AgentToServer(instance_uid=UID, sequence_num=1, capabilities=ALL).SerializeToString()
    assert world.session.heartbeat(beat, 1.0) is None
    assert world.report(1.0).remote_config.config_hash == ONE.config_hash


# ---- full state


def test_unknown_agent_with_full_state_is_not_asked() -> None:
    world = World()
    assert not wants_full(world.hello())


def test_unknown_agent_without_state_is_asked_once() -> None:
    world = World()
    assert wants_full(world.report())
    assert not wants_full(world.report(1.0))
    assert not wants_full(world.hello(2.0))
    assert not world.session.needs_full


def test_unanswered_requests_back_off() -> None:
    world = World()
    asked = [now for now in range(0, 2000, 10) if wants_full(world.report(float(now)))]
    assert asked == [0, 30, 90, 210, 450, 930, 1530]


def test_sequence_gap_requests_full_state_once() -> None:
    world = World()
    world.hello()
    assert wants_full(world.report(skip=1))
    assert world.session.full_state_requested
    assert not wants_full(world.hello())
    assert not world.session.full_state_requested


def test_client_that_answers_with_gaps_causes_no_loop() -> None:
    """The Python client sends its full report with a used sequence number, and then another gap."""
    world = World()
    world.hello()
    requests = 0
    for i in range(200):
        answer = world.report(i * 0.01, skip=1)
        if wants_full(answer):
            requests += 1
            world.hello(i * 0.01)
    assert requests <= 1 + 200 * 0.01 / sessions.ASK_AGAIN_S


def test_restart_under_the_same_uid_is_accepted() -> None:
    world = World()
    world.hello(health=pb.ComponentHealth(healthy=True))
    world.report()
    world.sequence = -1
    assert not wants_full(world.hello())
    assert world.record.health is None, "what the new process does not say is not known"


def test_later_description_is_a_change_not_full_state() -> None:
    world = World()
    world.hello(health=pb.ComponentHealth(healthy=True))
    world.report()
    world.report(agent_description=described("b"))
    assert world.record.healthy() is True


def test_known_agent_with_continuing_sequence_is_not_asked() -> None:
    before = World()
    before.hello()
    record = Record.from_stored(before.record.stored(before.record.state(), sequence_exact=True))
    world = World(record)
    world.sequence = 0
    assert not wants_full(world.report())


def test_known_agent_is_asked_once_after_a_crash() -> None:
    before = World()
    before.hello()
    record = Record.from_stored(before.record.stored(before.record.state(), sequence_exact=False))
    world = World(record)
    world.sequence = 0
    assert wants_full(world.report())
    assert not wants_full(world.hello())
    assert not wants_full(world.report())


def test_requests_respect_the_node_rate() -> None:
    world = World()
    world.permits = 0
    assert not wants_full(world.report())
    assert world.session.needs_full
    world.permits = 1
    pushed = world.session.push(1.0)
    assert pushed is not None
    assert wants_full(pb.ServerToAgent.FromString(pushed))
    assert world.session.push(2.0) is None


# ---- configs


def test_config_is_offered_until_the_agent_has_it() -> None:
    world = World()
    world.offer = ONE
    assert world.hello().remote_config.config_hash == ONE.config_hash
    assert world.changes & Change.OFFERED
    assert world.record.config.hash == ONE.config_hash
    assert not world.report().HasField("remote_config")
    applying = Status(last_remote_config_hash=ONE.config_hash, status=pb.RemoteConfigStatuses_APPLYING)
    assert not world.report(remote_config_status=applying).HasField("remote_config")
    assert not world.report(remote_config_status=applied(ONE)).HasField("remote_config")


def test_config_that_the_agent_has_is_not_offered() -> None:
    world = World()
    world.offer = ONE
    assert not world.hello(remote_config_status=applied(ONE)).HasField("remote_config")
    assert world.record.config.hash == ONE.config_hash, "it is what policy selects"


def test_newest_of_two_changes_is_pushed() -> None:
    world = World()
    world.hello()
    world.offer = ONE
    world.session.consider(1.0)
    world.offer = TWO
    world.session.consider(1.0)
    pushed = world.session.push(1.0)
    assert pushed is not None
    assert pb.ServerToAgent.FromString(pushed).remote_config.config_hash == TWO.config_hash
    assert world.session.push(1.0) is None


def test_change_withdrawn_before_sending_is_not_sent() -> None:
    world = World()
    world.offer = ONE
    world.hello(remote_config_status=applied(ONE))
    world.offer = TWO
    world.session.consider(1.0)
    world.offer = ONE
    world.session.consider(1.0)
    assert world.session.push(1.0) is None
    world.offer = TWO
    world.session.consider(2.0)
    world.offer = None
    world.session.consider(2.0)
    assert world.session.push(2.0) is None


def test_offer_withdrawn_before_sending_can_be_made_again() -> None:
    world = World()
    world.offer = ONE
    world.hello(remote_config_status=applied(ONE))
    for offer in (TWO, ONE, TWO):
        world.offer = offer
        world.session.consider(1.0)
    assert world.report(2.0).remote_config.config_hash == TWO.config_hash


def test_failed_config_is_not_offered_again() -> None:
    world = World()
    world.offer = ONE
    world.hello()
    failed = Status(last_remote_config_hash=ONE.config_hash, status=pb.RemoteConfigStatuses_FAILED, error_message="x")
    assert not world.report(remote_config_status=failed).HasField("remote_config")
    assert not world.report(100.0, remote_config_status=applied(TWO)).HasField("remote_config")
    world.sequence = -1
    assert not world.hello(200.0, remote_config_status=applied(TWO)).HasField("remote_config")


def test_possibly_missed_offer_is_repeated() -> None:
    world = World()
    world.offer = ONE
    world.hello()
    answer = world.report(1.0, skip=1)
    assert answer.HasField("remote_config"), "a gap: the answer with the offer may be what was lost"


def test_agent_that_keeps_reporting_another_hash_is_offered_again() -> None:
    world = World()
    world.offer = ONE
    world.hello(0.0)
    assert not world.report(10.0, remote_config_status=Status()).HasField("remote_config")
    assert world.report(31.0, remote_config_status=Status()).HasField("remote_config")


def test_capabilities_are_always_respected() -> None:
    world = World()
    world.offer = ONE
    assert not world.hello(capabilities=1).HasField("remote_config")
    assert world.report(capabilities=3).HasField("remote_config")
    world.offer = TWO
    assert not world.report(capabilities=1).HasField("remote_config")


def test_agent_without_config_reports_is_offered_once_per_session() -> None:
    world = World()
    world.offer = ONE
    assert world.hello(capabilities=3).HasField("remote_config")
    assert not world.report(100.0, capabilities=3).HasField("remote_config")
    again = World(world.record)
    again.offer = ONE
    again.sequence = world.sequence
    assert again.report(capabilities=3).HasField("remote_config")


def test_nothing_is_offered_before_a_description() -> None:
    world = World()
    world.offer = ONE
    assert not world.report().HasField("remote_config")
    assert world.hello().HasField("remote_config")


def test_no_policy_no_config() -> None:
    assert not World().hello().HasField("remote_config")


# ---- coming and going


def test_goodbye_is_final_despite_stragglers() -> None:
    world = World()
    world.offer = ONE
    world.hello(remote_config_status=applied(ONE))
    answer = world.report(agent_disconnect=pb.AgentDisconnect())
    assert answer == pb.ServerToAgent(instance_uid=UID)
    assert world.changes == Change.DISCONNECT
    world.offer = TWO
    world.sequence -= 1
    assert world.report() == pb.ServerToAgent(instance_uid=UID)
    assert world.changes == Change.NONE
    assert world.session.consider(0.0) == Change.NONE
    assert world.session.push(0.0) is None
    world.sequence = -1
    assert world.hello().HasField("remote_config"), "a new process under the same uid"
    assert world.changes & Change.CONNECT


def test_goodbye_may_carry_a_last_report() -> None:
    world = World()
    world.hello()
    world.report(agent_disconnect=pb.AgentDisconnect(), health=pb.ComponentHealth(status="Stopping"))
    assert world.changes == Change.DISCONNECT | Change.HEALTH


def test_uid_request_is_answered_under_the_old_uid() -> None:
    world = World()
    answer = world.hello(flags=pb.AgentToServerFlags_RequestInstanceUid)
    assert answer.agent_identification.new_instance_uid == b"f" * 16


def test_effective_config_is_passed_on_once() -> None:
    world = World()
    world.hello()
    effective = pb.EffectiveConfig()
    effective.config_map.config_map[""].body = b"a: 1"
    for expected in (effective.SerializeToString(deterministic=True), None):
        world.sequence += 1
        message = pb.AgentToServer(instance_uid=UID, sequence_num=world.sequence, effective_config=effective)
        assert world.session.report(message, 0.0).effective_config == expected


def test_zero_capabilities_take_the_long_path() -> None:
    world = World()
    world.hello()
    assert world.report(capabilities=0) == pb.ServerToAgent(instance_uid=UID)
    assert world.changes == Change.NONE
    assert world.record.capabilities == ALL


def test_two_crashes_on_a_config_lead_to_another_one() -> None:
    world = World()
    world.offer = ONE
    assert world.hello().HasField("remote_config")
    for _ in range(2):
        again = World(world.record)
        again.offer = ONE
        again.hello()
    assert [f.content_hash for f in world.record.config.failures] == [b"1" * 32]
    assert world.record.config.failed_hash == ONE.config_hash
    last = World(world.record)
    last.offer = TWO
    assert last.hello().HasField("remote_config")
    assert world.record.config.restarts == 0


def test_restart_with_the_config_applied_is_no_failure() -> None:
    world = World()
    world.offer = ONE
    world.hello()
    for _ in range(3):
        again = World(world.record)
        again.offer = ONE
        again.hello(remote_config_status=applied(ONE))
    assert not world.record.config.failures
    assert world.record.config.applied == ONE.slots


def test_failures_survive_a_new_uid() -> None:
    before = World()
    before.offer = ONE
    before.hello()
    before.report(
        remote_config_status=Status(last_remote_config_hash=ONE.config_hash, status=pb.RemoteConfigStatuses_FAILED)
    )
    after = World(Record(UID, 0))
    after.old = before.record
    after.offer = ONE
    assert not after.hello().HasField("remote_config"), "it failed at this under its old uid"
    assert after.record.config.failures == before.record.config.failures
    assert after.predecessor is before.record


def test_change_withdrawn_after_sending_is_offered_back() -> None:
    world = World()
    world.offer = ONE
    world.hello(remote_config_status=applied(ONE))
    world.offer = TWO
    assert world.report().HasField("remote_config")
    world.offer = ONE
    answer = world.report()
    assert answer.remote_config.config_hash == ONE.config_hash, "it may be about to apply the other"
    assert not world.report().HasField("remote_config")
    assert not world.report(remote_config_status=applied(ONE)).HasField("remote_config")


def test_change_withdrawn_before_sending_is_not_offered_back() -> None:
    world = World()
    world.offer = ONE
    world.hello(remote_config_status=applied(ONE))
    world.offer = TWO
    world.session.consider(0.0)
    world.offer = ONE
    world.session.consider(0.0)
    assert world.session.push(0.0) is None


def test_components_are_requested_once_per_hash() -> None:
    world = World()
    hash_only = pb.AvailableComponents(hash=b"h")
    listed = pb.AvailableComponents(hash=b"h")
    listed.components["receivers"].sub_component_map["otlp"].SetInParent()
    asked = world.hello(capabilities=ALL | 0x4000, available_components=hash_only)
    assert asked.flags == pb.ServerToAgentFlags_ReportAvailableComponents
    assert not world.report(capabilities=ALL | 0x4000).flags
    assert not world.report(capabilities=ALL | 0x4000, available_components=listed).flags
    assert world.changes & Change.COMPONENTS
    assert world.record.components_digest
    assert world.record.available_components == hash_only.SerializeToString()
    assert not world.report(capabilities=ALL | 0x4000, available_components=hash_only).flags, "it is known"
    other = pb.AvailableComponents(hash=b"i")
    assert world.report(capabilities=ALL | 0x4000, available_components=other).flags == 2
    assert not world.record.components_digest
    plain = World()
    assert not plain.hello(available_components=hash_only).flags, "an agent that does not say that it can is not asked"
    missed = World(Record(UID, 0))
    both = missed.report(skip=4, capabilities=ALL | 0x4000, available_components=hash_only)
    assert both.flags == 3


PACKAGES = 0x3807 | 0x18
SET, OTHER_SET = (
    PackagesOffer(
        n * 32,
        (OfferedPackage("agent", "1", "top-level", n * 32, n * 32, b""),),
        (OfferedSlot("", "p", n * 32),),
        (("agent", n * 32),),
    )
    for n in (b"s", b"o")
)


def package_statuses(offer: PackagesOffer, status: int = pb.PackageStatusEnum_Installed) -> pb.PackageStatuses:
    message = pb.PackageStatuses(server_provided_all_packages_hash=offer.hash)
    message.packages["agent"].status = status  # type: ignore[assignment]
    if status == pb.PackageStatusEnum_Installed:
        message.packages["agent"].agent_has_hash = offer.packages[0].hash
    return message


def test_packages_are_offered_once_to_agents_that_accept_them() -> None:
    mute = World()
    mute.packages = SET
    assert not mute.hello().HasField("packages_available")
    world = World()
    world.packages = SET
    answer = world.hello(capabilities=PACKAGES)
    assert answer.packages_available.all_packages_hash == SET.hash
    assert answer.packages_available.packages["agent"].file.download_url == f"http://here/{(b's' * 32).hex()}"
    assert world.changes & Change.PACKAGES_OFFERED
    assert not world.report(capabilities=PACKAGES).HasField("packages_available")
    world.report(capabilities=PACKAGES, package_statuses=package_statuses(SET))
    assert world.record.packages is not None
    assert world.record.packages.status == "APPLIED"
    world.packages = OTHER_SET
    assert world.session.consider(1.0) == Change.PACKAGES_OFFERED
    world.packages = SET
    world.session.consider(1.0)
    assert world.session.push(1.0) is None, "taken back before it left"


def test_installed_packages_are_not_offered() -> None:
    world = World()
    world.packages = SET
    answer = world.hello(capabilities=PACKAGES, package_statuses=package_statuses(SET))
    assert not answer.HasField("packages_available")
    assert world.record.packages is not None
    assert (world.record.packages.status, world.record.packages.baseline) == ("APPLIED", (None,))


def test_failed_download_is_offered_exactly_once_more() -> None:
    world = World()
    world.packages = SET
    world.hello(capabilities=PACKAGES)
    failed = package_statuses(SET, pb.PackageStatusEnum_InstallFailed)
    working = package_statuses(SET, pb.PackageStatusEnum_Installing)
    world.report(capabilities=PACKAGES, package_statuses=working)
    again = world.report(capabilities=PACKAGES, package_statuses=failed)
    assert again.packages_available.all_packages_hash == SET.hash
    world.report(capabilities=PACKAGES, package_statuses=working)
    assert not world.report(capabilities=PACKAGES, package_statuses=failed).HasField("packages_available")
    assert world.record.failures[0].content_hash == SET.slots[0].content_hash
    later = World(world.record)
    later.packages = SET
    assert not later.hello(capabilities=PACKAGES, package_statuses=failed).HasField("packages_available")


# ---- a status of another hash


def status(hash_: bytes, word: int = pb.RemoteConfigStatuses_APPLIED) -> Status:
    return Status(last_remote_config_hash=hash_, status=word)  # type: ignore[arg-type]


def test_status_of_another_hash_repeats_the_offer_a_few_times() -> None:
    world = World()
    world.offer = ONE
    assert world.hello(remote_config_status=status(b"before")).HasField("remote_config")
    assert not world.report(1.0, remote_config_status=status(b"before")).HasField("remote_config"), (
        "sent before the offer"
    )
    for number in range(3):
        answer = world.report(2.0, remote_config_status=status(b"else%d" % number))
        assert answer.remote_config.config_hash == ONE.config_hash
    assert not world.report(3.0, remote_config_status=status(b"else4")).HasField("remote_config")
    assert world.report(40.0, remote_config_status=status(b"else5")).HasField("remote_config"), (
        "as before, now and then"
    )
    world.offer = TWO
    assert world.report(41.0).HasField("remote_config")
    assert world.report(41.0, remote_config_status=status(b"else6")).HasField("remote_config"), "three for each hash"


def test_withheld_content_is_recorded() -> None:
    world = World()
    world.offer = ONE
    world.withheld = ((WithheldSlot("", "a", b"x", ""),), ())
    world.hello()
    assert world.record.config.withheld == world.withheld[0]
    world.withheld = ((), ())
    assert world.session.consider(1.0) == Change.OTHER
    assert not world.record.config.withheld


def test_failure_from_another_node_is_adopted() -> None:
    world = World()
    world.offer = ONE
    failed = Status(last_remote_config_hash=ONE.config_hash, status=pb.RemoteConfigStatuses_FAILED, error_message="no")
    answer = world.hello(remote_config_status=failed)
    assert not answer.HasField("remote_config")
    (failure,) = world.record.config.failures
    assert (failure.content_hash, failure.error_message) == (ONE.slots[0].content_hash, "no")
    assert [slot.assignment for slot in world.record.config.slots] == ["a"]
    world.offer = TWO
    assert world.report().remote_config.config_hash == TWO.config_hash


def test_packages_withdrawn_before_sending_are_not_sent() -> None:
    world = World()
    world.hello(capabilities=ALL | 0x18)
    world.packages = PackagesOffer(b"set", (), (), ())
    world.session.consider(1.0)
    world.packages = None
    world.session.consider(2.0)
    assert world.session.push(3.0) is None


def test_failed_packages_are_withdrawn_and_not_offered_again() -> None:
    world = World()
    world.hello(capabilities=ALL | 0x18)
    world.packages = PackagesOffer(b"set", (), (OfferedSlot("", "p", b"c"),), ())
    world.session.consider(1.0)
    world.record.offer_packages(world.packages)
    assert world.record.packages is not None
    world.record.packages.take_status(b"set", "FAILED", "no")
    world.session.consider(2.0)
    assert world.session.push(3.0) is None


def test_ask_at_once_requests_full_state_with_the_next_answer() -> None:
    world = World()
    world.hello()
    world.session.request_full_state_now()
    assert wants_full(world.report())


def test_packages_are_sent_before_they_are_recorded() -> None:
    world = World()
    world.hello(capabilities=ALL | 0x18)
    world.packages = PackagesOffer(b"set", (), (OfferedSlot("", "p", b"c"),), ())
    world.session.consider(1.0)
    world.record.packages = None
    pushed = world.session.push(2.0)
    assert pushed is not None
    assert pb.ServerToAgent.FromString(pushed).packages_available.all_packages_hash == b"set"


def test_credential_names_the_agent_before_its_predecessor_is_sought() -> None:
    world = World()
    world.old = Record(InstanceUid(b"o" * 16), 0)
    world.credential = Credential("s", "agent-001", "jwt", "", "", 0)
    world.hello()
    assert world.record.agent_id == "agent-001"
    assert world.predecessor is world.old
    world.credential = Credential("s", "agent-001", "jwt", "renewed", "", 0)
    world.report()
    assert world.changes == Change.OTHER
    assert world.predecessor is None

from __future__ import annotations

from typing import Any

from relay.opamp.offer import OfferedSlot
from relay.opamp.offering import Offering
from relay.opamp.packages import ADDON, OfferedPackage, PackageOffering, PackagesOffer, encode, reported_hash
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2

SLOTS = (OfferedSlot("", "p", b"c"),)
AGENT = OfferedPackage("agent", "2", "top-level", b"A" * 32, b"f" * 32, b"sig")
PLUGIN = OfferedPackage("plugin", "1", ADDON, b"P" * 32, b"g" * 32, b"")
OFFER = PackagesOffer(b"set", (AGENT, PLUGIN), SLOTS, (("agent", AGENT.hash), ("plugin", PLUGIN.hash)))
INSTALLED, FAILED, INSTALLING = (
    pb.PackageStatusEnum_Installed,
    pb.PackageStatusEnum_InstallFailed,
    pb.PackageStatusEnum_Installing,
)


def statuses(hash_: bytes = b"set", error: str = "", **packages: Any) -> bytes:
    message = pb.PackageStatuses(server_provided_all_packages_hash=hash_, error_message=error)
    for name, (status, held) in packages.items():
        message.packages[name].status = status
        message.packages[name].agent_has_hash = held
        if status == FAILED:
            message.packages[name].error_message = f"no room for {name}"
    return message.SerializeToString(deterministic=True)


def offered() -> PackageOffering:
    offering = PackageOffering()
    offering.offer_packages(OFFER, None, True, held=False)
    offering.mark_sent(None)
    return offering


def test_offer_names_download_urls() -> None:
    message = pb.ServerToAgent.FromString(encode(OFFER, lambda sha256: f"http://here/{sha256.decode()}"))
    available = message.packages_available
    assert available.all_packages_hash == b"set"
    agent = available.packages["agent"]
    assert (agent.type, agent.version, agent.hash) == (pb.PackageType_TopLevel, "2", AGENT.hash)
    assert agent.file.download_url == "http://here/" + "f" * 32
    assert (agent.file.content_hash, agent.file.signature) == (AGENT.sha256, b"sig")
    assert available.packages["plugin"].type == pb.PackageType_Addon


def test_applied_means_all_offered_packages_are_installed() -> None:
    offering = offered()
    offering.report(statuses(agent=(INSTALLED, b"old"), plugin=(INSTALLED, PLUGIN.hash)))
    assert offering.status == "APPLYING"
    offering.report(statuses(agent=(INSTALLED, AGENT.hash)))
    assert offering.status == "APPLYING"
    offering.report(statuses(b"other", agent=(INSTALLED, AGENT.hash), plugin=(INSTALLED, PLUGIN.hash)))
    assert offering.status == ""
    offering.report(statuses(agent=(INSTALLED, AGENT.hash), plugin=(INSTALLED, PLUGIN.hash)))
    assert (offering.status, offering.applied) == ("APPLIED", SLOTS)


def test_first_failed_download_is_reoffered_and_second_counts() -> None:
    offering = offered()
    offering.report(statuses(agent=(INSTALLING, b"")))
    failed = statuses(agent=(FAILED, b""))
    offering.report(failed)
    assert (offering.should_retry, offering.status, offering.failures) == (True, "APPLYING", ())
    offering.report(statuses(agent=(FAILED, b""), plugin=(INSTALLING, b"")))
    assert offering.status == "APPLYING", "the same failure, told once more"
    offering.mark_sent(failed)
    assert not offering.should_retry
    offering.report(statuses(agent=(INSTALLING, b"")))
    offering.report(failed)
    assert (offering.should_retry, offering.status) == (False, "FAILED")
    assert offering.reason == "agent: no room for agent"
    assert [f.content_hash for f in offering.failures] == [b"c"]
    assert offering.failed_hash == b"set"


def test_failures_of_two_packages_are_counted_separately() -> None:
    offering = offered()
    offering.report(statuses(agent=(FAILED, b"")))
    offering.report(statuses(agent=(FAILED, b""), plugin=(FAILED, b"")))
    assert (offering.should_retry, offering.status) == (True, "APPLYING")


def test_stale_statuses_under_a_new_hash_are_ignored() -> None:
    old = statuses(b"old", agent=(FAILED, b""))
    offering = PackageOffering()
    offering.offer_packages(OFFER, old, True, held=False)
    offering.mark_sent(old)
    offering.report(statuses(agent=(FAILED, b"")))
    assert (offering.status, offering.should_retry, offering.reported_hash) == ("", False, b"set")
    offering.report(statuses(agent=(INSTALLING, b"")))
    assert offering.status == "APPLYING"


def test_error_of_the_whole_set() -> None:
    offering = offered()
    offering.report(statuses(error="disk full"))
    offering.report(statuses())
    offering.report(statuses(error="disk full"))
    assert (offering.status, offering.reason) == ("FAILED", "disk full")


def test_offering_survives_the_link_and_a_new_uid() -> None:
    offering = offered()
    offering.report(statuses(agent=(INSTALLED, AGENT.hash), plugin=(INSTALLED, PLUGIN.hash)))
    back = PackageOffering()
    back.take(link_pb2.Offering.FromString(offering.message().SerializeToString()))
    assert (back.hash, back.status, back.hashes) == (b"set", "APPLIED", OFFER.hashes)
    heir = PackageOffering()
    heir.inherit(offering)
    assert (heir.hash, heir.hashes, heir.applied) == (b"set", OFFER.hashes, SLOTS)


def test_matching_hash_means_installed() -> None:
    offering = offered()
    offering.report(statuses(agent=(FAILED, AGENT.hash), plugin=(INSTALLED, PLUGIN.hash)))
    assert (offering.status, offering.should_retry) == ("APPLIED", False)


def test_packages_not_offered_are_ignored() -> None:
    offering = offered()
    for number in range(100):
        message = pb.PackageStatuses(server_provided_all_packages_hash=b"set")
        message.packages[f"other-{number}"].status = FAILED
        offering.report(message.SerializeToString())
    assert (offering.status, offering.should_retry, offering._failures) == ("APPLYING", False, {})


def test_repeated_set_changes_nothing() -> None:
    offering = offered()
    assert not offering.offer_packages(OFFER, statuses(), True, held=False)


def test_statuses_of_another_set_are_ignored() -> None:
    offering = offered()
    offering.report(statuses(b"other"))
    assert (offering.reported_hash, offering.status) == (b"other", "")


def test_forgiven_failures_are_counted_afresh() -> None:
    offering = offered()
    for _ in range(3):
        offering.report(statuses(agent=(INSTALLING, b"")))
        offering.report(statuses(agent=(FAILED, b"")))
    assert offering.failures
    assert not offering.forgive([b"other"])
    assert offering.forgive([b"c"])
    assert offering.failures[0].forgiven


def test_attempts_move_to_another_uid() -> None:
    old = offered()
    old.report(statuses(agent=(FAILED, b"")))
    new = PackageOffering()
    new.inherit(old)
    assert (new.hash, new.hashes) == (b"set", OFFER.hashes)
    plain = PackageOffering()
    plain.inherit(Offering())
    assert plain.hashes == ()


def test_reported_hash_of_statuses() -> None:
    assert reported_hash(None) == b""
    assert reported_hash(statuses()) == b"set"

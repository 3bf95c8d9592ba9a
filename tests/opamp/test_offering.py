from __future__ import annotations

from relay.opamp.offer import OfferedSlot, WithheldSlot
from relay.opamp.offering import Offering
from relay.pb.relay.v1 import link_pb2

A1, A2, B1 = OfferedSlot("", "a", b"1"), OfferedSlot("", "a", b"2"), OfferedSlot("b", "b", b"1")


def test_baseline_of_new_content_is_the_current_health() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.offer(b"i", (A1, B1), False)
    assert offering.baseline == (True, False)
    offering.offer(b"j", (A2, B1), None)
    assert list(offering.baseline) == [None, False]


def test_baseline_of_content_applied_elsewhere_is_unknown() -> None:
    here, before = Offering(), Offering()
    here.offer(b"h", (A1, B1), False, held=True)
    assert here.baseline == (None, None)
    before.offer(b"h", (A1,), True)
    here.keep_baseline(before)
    assert list(here.baseline) == [True, None]


def test_status_of_another_hash_does_not_affect_the_offer() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.take_status(b"h", "APPLIED", "")
    assert [offering.status, offering.applied, offering.undecided] == ["APPLIED", (A1,), False]
    offering.take_status(b"x", "APPLIED", "")
    assert offering.undecided


def test_failure_of_an_unknown_hash_blames_nothing() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.take_status(b"x", "FAILED", "no")
    assert (offering.failed_hash, len(offering.failures)) == (b"x", 0)


def test_message_round_trip() -> None:
    offering = Offering()
    offering.offer(b"h", (A1, B1), True)
    offering.take_status(b"h", "FAILED", "no")
    offering.stamp(7)
    offering.withheld = (WithheldSlot("b", "b", b"2", "no such variable"),)
    assert not offering.needs_stamp
    back = Offering()
    back.take(link_pb2.Offering.FromString(offering.message().SerializeToString()))
    assert (back.hash, back.slots, back.baseline, back.failures) == (b"h", (A1, B1), (True, True), offering.failures)
    assert (back.status, back.offered_at_ms, back.withheld) == ("FAILED", 7, offering.withheld)


def test_repeated_offer_changes_nothing() -> None:
    offering = Offering()
    assert offering.offer(b"h", (A1,), True)
    assert not offering.offer(b"h", (A1,), True)
    moved = OfferedSlot("", "other", b"1")
    assert offering.offer(b"h", (moved,), True), "it is of another assignment now"


def test_failure_counts_only_while_content_is_withheld() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.take_status(b"h", "FAILED", "no")
    found = [offering.failure]
    offering.withheld = (WithheldSlot("", "a", b"1", "it failed"),)
    found.append(offering.failure)
    assert found[0] is None, "it has what it should have"
    assert found[1] is not None
    assert found[1].error_message == "no"


def test_late_failure_blames_the_previous_offer() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.offer(b"i", (A2,), True)
    offering.take_status(b"h", "FAILED", "no")
    assert [f.content_hash for f in offering.failures] == [b"1"]


def test_running_content_is_not_blamed() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.take_status(b"h", "APPLIED", "")
    offering.offer(b"i", (A1, B1), True)
    offering.take_status(b"i", "FAILED", "no")
    assert [f.slot for f in offering.failures] == ["b"]


def test_failure_not_caused_by_the_content_is_forgiven() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.take_status(b"h", "FAILED", "no")
    assert not offering.forgive([b"9"])
    assert offering.forgive([b"1"])
    assert (offering.failures[0].forgiven, offering.failed_hash) == (True, b"")


def test_two_restarts_with_an_undecided_offer_are_a_failure() -> None:
    offering = Offering()
    assert not offering.note_restart(), "nothing was offered"
    offering.offer(b"h", (A1,), True)
    assert [offering.note_restart(), offering.note_restart()] == [False, True]
    assert offering.failures[0].error_message == "restarted 2 times without applying it"
    assert not offering.note_restart(), "it has decided"


def test_offering_moves_to_another_uid() -> None:
    old, new = Offering(), Offering()
    old.offer(b"h", (A1,), True)
    new.inherit(old)
    assert (new.hash, new.slots, new.previous) == (b"h", (A1,), (b"", ()))


def test_undated_offer_is_stamped_once() -> None:
    offering = Offering()
    seen = [offering.needs_stamp]
    offering.stamp(5)
    seen.append(bool(offering.offered_at_ms))
    offering.offer(b"h", (A1,), True)
    seen.append(offering.needs_stamp)
    assert seen == [False, False, True]
    offering.stamp(5)
    offering.stamp(6)
    assert offering.offered_at_ms == 5

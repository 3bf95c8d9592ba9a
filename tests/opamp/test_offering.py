from __future__ import annotations

from relay.opamp.offer import OfferedSlot
from relay.opamp.offering import Offering
from relay.pb.relay.v1 import link_pb2

A1, A2, B1 = OfferedSlot("", "a", b"1"), OfferedSlot("", "a", b"2"), OfferedSlot("b", "b", b"1")


def test_health_lost_on_what_an_agent_keeps_is_not_its_health_before_what_else_it_gets() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.offer(b"i", (A1, B1), False)
    assert offering.baseline == (True, False)
    offering.offer(b"j", (A2, B1), None)
    assert list(offering.baseline) == [None, False]


def test_who_comes_with_a_content_had_a_health_before_it_that_nobody_here_knows() -> None:
    here, before = Offering(), Offering()
    here.offer(b"h", (A1, B1), False, held=True)
    assert here.baseline == (None, None)
    before.offer(b"h", (A1,), True)
    here.keep_baseline(before)
    assert list(here.baseline) == [True, None]


def test_what_is_said_of_something_else_says_nothing_of_the_offer() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.said(b"h", "APPLIED", "")
    assert [offering.status, offering.applied, offering.undecided] == ["APPLIED", (A1,), False]
    offering.said(b"x", "APPLIED", "")
    assert offering.undecided


def test_a_failure_of_something_unknown_blames_nothing() -> None:
    offering = Offering()
    offering.offer(b"h", (A1,), True)
    offering.said(b"x", "FAILED", "no")
    assert (offering.failed_hash, len(offering.failed)) == (b"x", 0)


def test_over_the_link_and_back() -> None:
    offering = Offering()
    offering.offer(b"h", (A1, B1), True)
    offering.said(b"h", "FAILED", "no")
    offering.stamp(7)
    assert not offering.undated
    back = Offering()
    back.take(link_pb2.Offering.FromString(offering.message().SerializeToString()))
    assert (back.hash, back.slots, back.baseline, back.failed) == (b"h", (A1, B1), (True, True), offering.failed)
    assert (back.status, back.offered_at_ms) == ("FAILED", 7)

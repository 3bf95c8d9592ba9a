"""Which agent is speaking, message by message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.opamp.contest import Contest, Speaker, Verdict, continues_sequence


class Uid:
    """One uid, with an owner that acts on verdicts."""

    def __init__(self, instance_id: str, sequence: int) -> None:
        self.holder = Speaker(instance_id, sequence)
        self.contest = Contest()

    def hear(self, instance_id: str | None, sequence: int) -> str:
        verdict = self.contest.hear(self.holder, instance_id, sequence)
        if verdict is Verdict.STRANGER:
            self.contest.replace_holder(self.holder)
        if verdict in (Verdict.STRANGER, Verdict.RETURNED):
            self.holder = Speaker(instance_id if instance_id is not None else "?", sequence)
        elif verdict not in (Verdict.NEWCOMER, Verdict.EITHER):
            self.holder.sequence = sequence
        return verdict.value


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ((None, 6), "same"),
        (("a", 0), "same"),
        (("a", 99), "same"),
        (("b", 6), "same"),
        (("", 0), "unknown"),
        ((None, 9), "unknown"),
        (("b", 0), "stranger"),
        (("b", 77), "stranger"),
    ],
)
def test_verdict_on_one_message(message: tuple[str | None, int], expected: str) -> None:
    assert Uid("a", 5).hear(*message) == expected


def test_first_sequence_numbers_of_a_stranger_do_not_continue() -> None:
    assert Uid("a", 0).hear("b", 1) == "stranger"
    assert Uid("a", -1).hear("b", 0) == "stranger"


def test_alternating_messages_identify_only_the_newcomer() -> None:
    uid = Uid("a", 5)
    assert uid.hear("b", 0) == "stranger"
    assert uid.hear(None, 1) == "same", "B goes on"
    assert uid.hear(None, 6) == "returned", "A goes on"
    uid.holder.instance_id = "a"
    assert uid.contest.settled
    assert uid.hear(None, 2) == "newcomer"
    assert uid.hear(None, 3) == "newcomer", "it has not used its uid yet"
    assert uid.hear(None, 7) == "same"
    assert uid.hear("b", 0) == "newcomer"
    assert uid.hear("c", 0) == "newcomer"
    assert uid.hear("a", 8) == "same"


def test_alternating_descriptions_identify_the_newcomer() -> None:
    uid = Uid("a", 5)
    assert [uid.hear("b", 0), uid.hear("a", 0), uid.hear("b", 1), uid.hear("a", 1)] == [
        "stranger",
        "returned",
        "newcomer",
        "same",
    ]


def test_replaced_agent_costs_its_successor_one_request() -> None:
    uid = Uid("a", 5)
    uid.hear("b", 0)
    assert [uid.hear(None, n) for n in range(1, 6)] == ["same"] * 5
    assert uid.hear(None, 6) == "either", "where both would go on so"
    assert uid.hear("b", 7) == "same", "it was asked"
    assert [uid.hear(None, n) for n in range(8, 50)] == ["same"] * 42
    assert uid.hear("c", 0) == "stranger", "and so on"


def test_settled_contest_recognizes_the_newcomer_by_name() -> None:
    uid = Uid("a", 1)
    uid.contest.settle(Speaker("b", 1))
    assert [uid.hear("b", 2), uid.hear("b", 3)] == ["newcomer", "newcomer"]
    assert uid.hear("b", 2) == "newcomer"


def test_settled_contest_tells_two_live_agents_apart() -> None:
    uid = Uid("", 5)
    uid.contest.settle(Speaker("b", 0))
    assert uid.hear("b", 1) == "newcomer"
    assert uid.hear(None, 6) == "same"


def test_both_agents_may_be_asked_before_either_answers() -> None:
    uid = Uid("a", 0)
    assert uid.hear("b", 0) == "stranger"
    assert uid.hear(None, 1) == "either", "of a, as it happens"
    assert uid.hear(None, 1) == "either", "and of b"
    assert uid.hear("a", 2) == "returned"
    assert uid.hear(None, 1) == "newcomer"


class Clone:
    """A client that identifies itself in its first message and when asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence = -1
        self.describes = True
        self.has_new_uid = False

    def say(self, uid: Uid, *, at_once: bool) -> None:
        self.sequence += 1
        verdict = uid.hear(self.name if self.describes else None, self.sequence)
        self.describes = verdict in ("either", "unknown", "returned")
        self.has_new_uid |= verdict == "newcomer"
        if self.describes and at_once:
            self.say(uid, at_once=at_once)


@pytest.mark.parametrize("at_once", [True, False])
@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(0, 6))
def test_second_agent_gets_another_uid_in_any_order(at_once: bool, order: list[bool], before: int) -> None:
    first, second = Clone("a"), Clone("b")
    uid = Uid("a", -1)
    for _ in range(before + 1):
        first.say(uid, at_once=at_once)
    second.say(uid, at_once=at_once)
    for is_first in order:
        if not second.has_new_uid:
            (first if is_first else second).say(uid, at_once=at_once)
    assert not first.has_new_uid
    for _ in range(10):  # finally, in turns
        for clone in (first, second):
            if not clone.has_new_uid and not second.has_new_uid:
                clone.say(uid, at_once=at_once)
    assert second.has_new_uid


def test_continuing_sequence_under_a_new_name_is_the_same_agent() -> None:
    uid = Uid("a", 5)
    uid.contest.replace_holder(Speaker("z", 40))
    uid.contest.settle(Speaker("b", 9))
    assert uid.hear("a", 6) == "same"


def test_returned_agent_keeps_its_name() -> None:
    uid = Uid("a", 5)
    assert uid.hear("b", 0) == "stranger"
    assert uid.hear(None, 6) == "returned"
    assert uid.hear("a", 7) == "same"
    assert uid.hear(None, 8) == "same"


@pytest.mark.parametrize(("sequence", "alone"), [(6, True), (7, False), (1, False)])
def test_next_sequence_number_suffices_without_a_rival(sequence: int, alone: bool) -> None:
    assert continues_sequence(sequence, sequence - 1 if alone or sequence == 1 else 5) is alone


def test_returned_agent_may_change_its_name() -> None:
    uid = Uid("a", 5)
    assert uid.hear("b", 0) == "stranger"
    assert uid.hear(None, 6) == "returned"
    assert uid.hear("c", 7) == "same", "its number goes on"
    assert uid.hear("c", 0) == "same", "and that is its name from now on"

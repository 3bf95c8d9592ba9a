from __future__ import annotations

from relay.auth import failures
from relay.auth.failures import Failures


def test_the_tenth_failure_in_a_minute_is_answered_late() -> None:
    counted = Failures()
    assert [counted.add("a", 1.0) for _ in range(11)] == [False] * 9 + [True] * 2
    assert not counted.add("b", 1.0), "another address"
    assert counted.add("a", 60.9)
    assert not counted.add("a", 61.0), "another minute"


def test_addresses_are_bounded() -> None:
    counted = Failures()
    for number in range(failures._MAX_ADDRESSES + 5):
        for _ in range(9 if number == 0 else 1):
            counted.add(str(number), 0.0)
    assert not counted.add("0", 0.0), "it was forgotten"
    assert len(counted._windows) == failures._MAX_ADDRESSES


def test_who_is_over() -> None:
    failures = Failures()
    assert not failures.is_over("a", 0)
    for _ in range(9):
        failures.add("a", 0)
    assert failures.is_over("a", 59)
    assert not failures.is_over("a", 60)
    assert not failures.is_over("b", 0)

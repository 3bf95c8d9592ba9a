from __future__ import annotations

from relay.auth.throttle import Throttle


def test_one_in_a_second_passes_and_the_others_are_counted() -> None:
    throttle = Throttle()
    assert throttle.passing("a", 10.0) == 0
    assert throttle.passing("a", 10.5) is None
    assert throttle.passing("b", 10.5) == 0
    assert throttle.passing("a", 10.9) is None
    assert throttle.passing("a", 11.0) == 2
    assert throttle.passing("a", 12.0) == 0


def test_what_is_old_is_forgotten_and_what_is_not_stays() -> None:
    throttle = Throttle()
    throttle.passing("old", 0.0)
    throttle.passing("old", 0.1)
    throttle.passing("new", 0.9)
    throttle.forget_old(1.5)
    assert throttle.passing("old", 1.6) == 0
    assert throttle.passing("new", 1.8) is None

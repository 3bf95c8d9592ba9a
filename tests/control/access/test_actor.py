from __future__ import annotations

from relay.control.access.actor import ANONYMOUS, SYSTEM, Actor


def test_the_program_itself_may_do_everything_and_proves_nothing() -> None:
    for actor in (SYSTEM, ANONYMOUS):
        assert actor.grants is None
        assert not actor.verified


def test_people_are_told_apart_by_their_issuer() -> None:
    assert Actor("ann").identity == "ann"
    assert Actor("ann", owner="https://idp|1").identity == "https://idp|1"

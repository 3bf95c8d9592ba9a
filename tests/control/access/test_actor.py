from __future__ import annotations

from relay.control.access.actor import ANONYMOUS, SYSTEM


def test_the_program_itself_may_do_everything_and_proves_nothing() -> None:
    for actor in (SYSTEM, ANONYMOUS):
        assert actor.grant is None
        assert not actor.verified

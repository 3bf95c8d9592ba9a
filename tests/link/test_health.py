from relay.link.health import LinkHealth
from relay.testing.clock import ManualClock


def test_up_and_down() -> None:
    clock = ManualClock()
    health = LinkHealth(clock)
    clock.advance(3)
    assert (health.word, health.silent_s(), health.unheard_s()) == ("down", 3, 0)
    assert health.heard(), "the first since it came up"
    assert not health.heard()
    clock.advance(4)
    assert (health.word, health.silent_s(), health.unheard_s()) == ("up", 0, 4)
    health.acknowledged()
    assert health.unheard_s() == 0
    health.went_down()
    clock.advance(2)
    assert (health.connected, health.silent_s()) == (False, 2)
    health.went_down()
    assert health.silent_s() == 2, "it was down already"


def test_refused_reports() -> None:
    health = LinkHealth(ManualClock())
    health.heard()
    health.refusal = "another node has this name"
    assert health.word == "refused"
    health.acknowledged()
    assert health.word == "up"

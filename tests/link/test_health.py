from relay.link.health import LinkHealth
from relay.testing.clock import ManualClock


def test_up_and_down() -> None:
    clock = ManualClock()
    health = LinkHealth(clock)
    clock.advance(3)
    assert (health.word, health.silent_s(), health.unacknowledged_s()) == ("down", 3, 0)
    assert health.record_message(), "the first since it came up"
    assert not health.record_message()
    clock.advance(4)
    assert (health.word, health.silent_s(), health.unacknowledged_s()) == ("up", 0, 4)
    health.record_ack()
    assert health.unacknowledged_s() == 0
    health.record_down()
    clock.advance(2)
    assert (health.connected, health.silent_s()) == (False, 2)
    health.record_down()
    assert health.silent_s() == 2, "it was down already"


def test_refused_reports() -> None:
    health = LinkHealth(ManualClock())
    health.record_message()
    health.refusal = "another node has this name"
    assert health.word == "refused"
    health.record_ack()
    assert health.word == "up"

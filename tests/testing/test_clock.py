from relay.testing.clock import ManualClock


def test_it_stands_still_until_it_is_turned() -> None:
    clock = ManualClock(unix_ms=1000)
    assert (clock.monotonic(), clock.unix_ms()) == (0.0, 1000)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.unix_ms()) == (1.5, 2500)

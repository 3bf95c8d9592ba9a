from relay.testing.clock import ManualClock


def test_manual_clock_moves_only_by_advance() -> None:
    clock = ManualClock(unix_ms=1000)
    assert (clock.monotonic(), clock.unix_ms()) == (0.0, 1000)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.unix_ms()) == (1.5, 2500)

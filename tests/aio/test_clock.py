from relay.aio.clock import SystemClock


def test_system_clock_advances() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.unix_ms() > 1_700_000_000_000

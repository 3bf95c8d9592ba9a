from relay.aio.backoff import Backoff


def test_delays_grow_to_a_maximum_and_reset() -> None:
    backoff = Backoff(first_s=1, most_s=5, chance=lambda: 1.0)
    assert [backoff.next_delay_s() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next_delay_s() == 1


def test_jitter_covers_all_but_a_tenth() -> None:
    assert Backoff(first_s=10, most_s=10, chance=lambda: 0.0).next_delay_s() == 1


def test_many_failures_do_not_overflow() -> None:
    backoff = Backoff(first_s=1, most_s=5, chance=lambda: 1.0)
    assert {backoff.next_delay_s() for _ in range(5000)} == {1, 2, 4, 5}

from relay.control.rollouts.soak import KEEP_S, Confirmations, Soak


def looked(soak: Soak, now: float, *, began_ms: int = 1, kept_s: float = 0.0, counts: bool = True) -> float:
    return soak.look("a-1", began_ms, kept_s, now, most_s=3, counts=counts)


def test_soak_adds_up_looks_without_gaps() -> None:
    soak = Soak()
    assert looked(soak, 100) == 0, "the first look has seen no time"
    assert looked(soak, 101) == 1
    assert looked(soak, 1000) == 4, "while nobody looked nothing was observed"
    assert looked(soak, 1001, counts=False) == 4, "nor while it was paused"
    assert looked(soak, 1002) == 5
    assert soak.observed_s("a-1", 1, 0.0) == 5
    assert soak.observed_s("a-2", 1, 7.0) == 7


def test_soak_continues_after_a_restart() -> None:
    soak = Soak()
    assert looked(soak, 5, kept_s=40) == 40
    assert looked(soak, 6, kept_s=40) == 41


def test_soak_restarts_with_the_next_stage() -> None:
    soak = Soak()
    looked(soak, 1)
    looked(soak, 3)
    assert looked(soak, 4, began_ms=2) == 0


def test_soak_is_stored_periodically() -> None:
    soak = Soak()
    assert not soak.is_due("a-1")
    for now in range(12):
        looked(soak, now)
    assert soak.is_due("a-1")
    soak.mark_stored("a-1")
    soak.mark_stored("nobody")
    assert not soak.is_due("a-1")
    assert KEEP_S == 10
    soak.forget_others([])
    assert soak.observed_s("a-1", 1, 0.0) == 0


def test_gate_needs_reports_from_after_it_first_passed() -> None:
    said = Confirmations()
    assert not said.is_confirmed("a-1", 0, [9.0, 12.0], 10.0)
    assert not said.is_confirmed("a-1", 0, [11.0, 9.5], 12.0)
    assert said.is_confirmed("a-1", 0, [11.0, 10.5], 12.0)
    assert not said.is_confirmed("a-1", 1, [11.0, 10.5], 12.0), "of the next stage anew"
    said.forget("a-1")
    assert not said.is_confirmed("a-1", 1, [13.0], 14.0)
    assert said.is_confirmed("a-1", 2, [], 20.0), "where there is no node nobody is waited for"

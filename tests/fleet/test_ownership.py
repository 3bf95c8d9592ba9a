from relay.fleet.ownership import Holding, corrected, winner


def test_newest_session_wins_and_ties_go_by_name() -> None:
    old, new = Holding("eu/a", 1), Holding("eu/b", 2)
    assert winner(None, old) is old
    assert winner(old, new) is new
    assert winner(new, old) is new
    assert winner(Holding("eu/a", 2), new) is new
    assert winner(new, Holding("eu/a", 2)) is new


def test_node_renews_its_own_claim() -> None:
    assert winner(Holding("eu/a", 5), Holding("eu/a", 1)).session_started_ms == 1


def test_live_connection_wins_over_clocks() -> None:
    live, stale = Holding("eu/a", 1), Holding("eu/b", 99, live=False)
    assert winner(live, stale) is live
    assert winner(stale, live) is live
    assert winner(Holding("eu/a", 1, live=False), stale) is stale


def test_session_starts_use_our_clock_and_are_never_in_the_future() -> None:
    assert corrected(1_000, 200, 5_000) == 1_200
    assert corrected(61_000, -60_000, 5_000) == 1_000
    assert corrected(61_000, 0, 5_000) == 5_000

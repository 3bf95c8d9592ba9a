from relay.fleet.ownership import Claim, winner


def test_the_newest_session_wins_and_a_tie_goes_by_name() -> None:
    old, new = Claim("eu/a", 1), Claim("eu/b", 2)
    assert winner(None, old) is old
    assert winner(old, new) is new
    assert winner(new, old) is new
    assert winner(Claim("eu/a", 2), new) is new
    assert winner(new, Claim("eu/a", 2)) is new


def test_a_node_s_own_claim_is_renewed_whatever_its_start() -> None:
    assert winner(Claim("eu/a", 5), Claim("eu/a", 1)).session_started_ms == 1

from relay.settings import guide


def test_a_key_below_a_refused_one_is_refused_too() -> None:
    assert guide.refusal("database.max_open_conns") == guide.REFUSED["database"]
    assert guide.refusal("server.websocket.endpoint") is None

from relay.settings import guide


def test_every_refusal_has_a_reason() -> None:
    assert all(guide.REFUSED.values())

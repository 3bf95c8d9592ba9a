import math

from relay.node.freshness import Freshness
from relay.testing.clock import ManualClock


def test_policy_age() -> None:
    clock = ManualClock()
    freshness = Freshness(clock=clock, max_staleness_s=None)
    clock.advance(5)
    assert (freshness.age_s(), freshness.age_or_unknown_s(), freshness.age_or_uptime_s()) == (None, math.inf, 5)
    assert not freshness.confirm()
    clock.advance(7)
    assert (freshness.age_s(), freshness.age_or_unknown_s(), freshness.age_or_uptime_s()) == (7, 7, 7)
    assert freshness.may_offer(), "however old"


def test_stale_policy_withholds_offers_until_confirmed() -> None:
    clock = ManualClock()
    freshness = Freshness(clock=clock, max_staleness_s=60)
    assert not freshness.may_offer(), "never confirmed in this process"
    assert freshness.confirm(), "agents wait for it"
    assert freshness.may_offer()
    clock.advance(60)
    assert freshness.may_offer()
    assert not freshness.confirm()
    clock.advance(61)
    assert not freshness.may_offer()
    assert freshness.confirm()

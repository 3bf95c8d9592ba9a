from hypothesis import given
from hypothesis import strategies as st

from relay.policy.rollout import BUCKETS, EVERYONE, NOBODY, bucket, threshold


def chosen(agents: int, percentage: float) -> int:
    buckets = [bucket("r-1", f"agent-{i}") for i in range(agents)]
    limit = threshold(buckets, percentage)
    return sum(b < limit for b in buckets)


def test_counts_are_exact() -> None:
    assert chosen(20, 5) == 1
    assert chosen(12, 5) == 1
    assert chosen(1000, 20) == 200
    assert chosen(3, 1) == 1
    assert chosen(7, 100) == 7


def test_everyone_includes_agents_that_appear_later() -> None:
    assert threshold([], 100) == EVERYONE
    assert bucket("r", "late") < EVERYONE


def test_zero_percent_is_no_agent() -> None:
    assert threshold([], 50) == NOBODY
    assert threshold([1, 2], 0) == NOBODY


@given(st.text(), st.text())
def test_bucket_is_stable_and_in_range(rollout: str, agent: str) -> None:
    assert 0 <= bucket(rollout, agent) == bucket(rollout, agent) < BUCKETS


def test_different_rollouts_begin_with_different_agents() -> None:
    order = [sorted(range(50), key=lambda i: bucket(r, f"a{i}")) for r in ("one", "two")]
    assert order[0] != order[1]

from relay.control.rollouts.model import ApprovalGiven, Counts, Passed, Rollout, State
from tests.control.rollouts.made import revision, rollout, strategy


def test_a_rollout_is_stored_whole() -> None:
    full = rollout(
        candidate=revision(2, tier="prod"),
        spec=strategy(local_guard={"max_failures": 2}, windows=[{"start": "09:00"}]),
        passed=(Passed(1, 2, {"targets": 1}, {"verdict": "pass", "reason": ""}),),
        approvals=(ApprovalGiven("bob", 3, "d"),),
        thresholds={"": 5},
    )
    assert Rollout.from_plain(full.plain()) == full
    assert Rollout.from_plain(rollout(stable=None).plain()).stable is None


def test_a_region_gets_its_own_threshold_and_what_its_node_must_know() -> None:
    made = rollout(spec=strategy(local_guard={"max_failures": 2}, candidate_ttl="1h"), thresholds={"": 5, "eu": 9})
    published = made.for_region("eu")
    assert (published.threshold, published.candidate_ttl_s) == (9, 3600)
    assert published.local_guard is not None
    assert made.for_region("us").threshold == 5


def test_states_that_are_over_are_not_active() -> None:
    over = {State.ROLLED_BACK, State.COMPLETED, State.SUPERSEDED, State.REJECTED, State.ABORTED}
    assert {s for s in State if not rollout(state=s).active} == over


def test_counts_add_up() -> None:
    assert Counts(targets=1, failed=2) + Counts(targets=3) == Counts(targets=4, failed=2)
    assert Counts(targets=1, failed=2) * 3 == Counts(targets=3, failed=6)
    assert Counts(targets=1, reporting=5).plain() == {
        "targets": 1, "offered": 0, "applied": 0, "failed": 0, "silent": 0, "unhealthy": 0
    }  # fmt: skip

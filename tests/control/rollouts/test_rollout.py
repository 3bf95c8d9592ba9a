from relay.control.rollouts.rollout import ApprovalGiven, Passed, Rollout, RolloutState, Way, at_once
from tests.control.rollouts.made import revision, rollout, strategy


def test_rollout_round_trip() -> None:
    full = rollout(
        candidate=revision(2, tier="prod"),
        spec=strategy(local_guard={"max_failures": 2}, windows=[{"start": "09:00"}]),
        passed=(Passed(1, 2, {"targets": 1}, {"verdict": "pass", "reason": ""}),),
        approvals=(ApprovalGiven("bob", 3, "d"),),
        thresholds={"": 5},
    )
    assert Rollout.from_plain(full.plain()) == full
    assert Rollout.from_plain(rollout(stable=None).plain()).stable is None


def test_published_rollout_has_the_region_threshold() -> None:
    made = rollout(spec=strategy(local_guard={"max_failures": 2}, candidate_ttl="1h"), thresholds={"": 5, "eu": 9})
    published = made.for_region("eu")
    assert (published.threshold, published.candidate_ttl_s) == (9, 3600)
    assert published.local_guard is not None
    assert made.for_region("us").threshold == 5


def test_ended_states_are_not_active() -> None:
    over = {
        RolloutState.ROLLED_BACK,
        RolloutState.COMPLETED,
        RolloutState.SUPERSEDED,
        RolloutState.REJECTED,
        RolloutState.ABORTED,
    }
    assert {s for s in RolloutState if not rollout(state=s).active} == over


def test_when_the_next_change_keeps_the_strategy() -> None:
    assert rollout(way=Way.NAMED, state=RolloutState.COMPLETED).keeps_its_way
    assert rollout(way=Way.KEPT).keeps_its_way, "none has gone out by it yet"
    assert not rollout(way=Way.KEPT, state=RolloutState.COMPLETED).keeps_its_way
    assert not rollout(way=Way.SETTINGS).keeps_its_way


def test_rollout_without_a_strategy_is_one_stage_for_all() -> None:
    spec = at_once(0.25, 3)
    assert [(stage.percentage, stage.success_criteria.error_rate_threshold) for stage in spec.stages] == [(100, 0.25)]
    assert (spec.min_samples, at_once().stages[0].success_criteria.error_rate_threshold) == (3, None)

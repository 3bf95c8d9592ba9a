import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest

from relay.control.rollouts import plan
from relay.control.rollouts.counts import Counts, RegionView
from relay.control.rollouts.rollout import ALL, Rollout, RolloutState
from relay.errors import Conflict
from relay.policy.rollout import EVERYONE, bucket
from relay.policy.strategy import OnFailure, Window
from tests.control.rollouts.made import rollout, strategy

NOW = 10_000_000
GOOD = {"eu": RegionView(Counts(targets=5, applied=5, reporting=5))}
BAD = {"eu": RegionView(Counts(targets=5, applied=1, failed=4, holding=1))}
CRITERIA = {"error_rate_threshold": 0.1}
STAGES: list[dict[str, Any]] = [
    {"name": "canary", "percentage": 5, "success_criteria": CRITERIA},
    {"name": "all", "percentage": 100, "success_criteria": CRITERIA},
]


def agents(region: str, count: int) -> list[tuple[str, str]]:
    return [(region, f"{region}-{i}") for i in range(count)]


def on(found: Mapping[str, int], targets: list[tuple[str, str]], name: str = "a-2") -> int:
    return sum(bucket(name, agent) < found.get(region, found[""]) for region, agent in targets)


@pytest.mark.parametrize(
    ("count", "percentage", "expected"), [(20, 5, 1), (12, 5, 1), (200, 5, 10), (3, 50, 2), (1, 1, 1)]
)
def test_percentages_are_exact_and_at_least_one(count: int, percentage: float, expected: int) -> None:
    spec = strategy(stages=[{"name": "a", "percentage": percentage}])
    targets = agents("eu", count)
    assert on(plan.thresholds("a-2", spec, 0, targets, {}), targets) == expected


def test_hundred_percent_includes_later_agents() -> None:
    assert plan.thresholds("a-2", strategy(), 2, agents("eu", 3), {}) == {"": EVERYONE}


def test_percentage_is_global_or_per_region() -> None:
    targets = agents("eu", 100) + agents("us", 12)
    stages = [{"name": "a", "percentage": 5}]
    each = plan.thresholds("a-2", strategy(stages=stages, spread="per_region"), 0, targets, {})
    assert (on(each, agents("eu", 100)), on(each, agents("us", 12))) == (5, 1)
    every = plan.thresholds("a-2", strategy(stages=stages), 0, targets, {})
    assert on(every, targets) == 6


def test_regions_move_whole_and_no_agent_goes_back() -> None:
    stages = [{"name": "a", "regions": ["eu"]}, {"name": "b", "percentage": 50}, {"name": "c", "regions": ["us"]}]
    spec = strategy(stages=stages)
    targets = agents("eu", 10) + agents("us", 10) + agents("ap", 10)
    first = plan.thresholds("a-2", spec, 0, targets, {})
    assert first == {"eu": EVERYONE, "": 0}
    second = plan.thresholds("a-2", spec, 1, targets, first)
    assert second["eu"] == EVERYONE
    assert 0 < on(second, agents("us", 10) + agents("ap", 10)) < 20
    third = plan.thresholds("a-2", spec, 2, [], second)
    assert (third["us"], third[""]) == (EVERYONE, second[""])
    fewer = plan.thresholds("a-2", strategy(stages=[{"name": "a", "percentage": 5}]), 0, targets, {"": 10**14})
    assert fewer[""] >= 10**14


def begun(**more: Any) -> Rollout:
    spec = strategy(stages=more.pop("stages", STAGES), **more.pop("spec", {}))
    return plan.begin(rollout(spec=spec, **more), agents("eu", 20), NOW)


def test_good_stages_end_in_completion() -> None:
    first = begun()
    assert (first.state, first.stage, first.stage_started_ms) == (RolloutState.RUNNING, 0, NOW)
    second = plan.step(first, GOOD, agents("eu", 20), NOW + 1)
    assert (second.stage, second.threshold("eu")) == (1, EVERYONE)
    assert second.passed[0].counts["applied"] == 5
    done = plan.step(second, GOOD, agents("eu", 20), NOW + 2)
    assert (done.state, done.ended_ms) == (RolloutState.COMPLETED, NOW + 2)
    assert plan.step(done, BAD, [], NOW + 3) is done
    assert Rollout.from_plain(done.plain()) == done


def test_failed_stage_rolls_back_or_pauses() -> None:
    back = plan.step(begun(), BAD, agents("eu", 20), NOW + 1)
    assert back.state is RolloutState.ROLLING_BACK
    assert "stage canary failed" in back.reason
    assert (back.passed[0].counts["failed"], back.passed[0].gate["verdict"]) == (4, "fail")
    assert plan.step(back, BAD, [], NOW + 2) is back, "one agent still has it"
    assert plan.step(back, {}, [], NOW + 3).state is RolloutState.ROLLED_BACK
    paused = plan.step(begun(on_failure=OnFailure.PAUSE), BAD, agents("eu", 20), NOW + 1)
    assert paused.state is RolloutState.PAUSED
    assert plan.resume(paused).passed == ()
    again = plan.try_again(paused, NOW + 9)
    assert (again.state, again.failed, again.passed, again.stage_started_ms) == (
        RolloutState.RUNNING,
        False,
        (),
        NOW + 9,
    )
    assert plan.step(paused, GOOD, [], NOW + 2) is paused


def test_rollback_without_a_stable_revision_waits_for_nothing() -> None:
    back = plan.roll_back(begun(stable=None), "no")
    done = plan.step(back, BAD, [], NOW)
    assert done.state is RolloutState.ROLLED_BACK
    assert "there was no earlier revision" in done.reason


def test_inconclusive_stage_is_held_with_the_reason() -> None:
    held = plan.step(begun(), {}, agents("eu", 20), NOW + 1)
    assert (held.state, held.reason) == (RolloutState.HELD, "this stage matches no known agent")
    assert plan.step(held, {}, agents("eu", 20), NOW + 2) is held
    undecided = {"eu": RegionView(Counts(targets=1, undecided=1))}
    assert plan.step(held, undecided, agents("eu", 20), NOW + 3).state is RolloutState.RUNNING


def test_empty_stage_begins_with_its_first_agent() -> None:
    empty = plan.begin(rollout(spec=strategy(stages=STAGES)), [], NOW)
    assert empty.threshold("eu") == 0
    known = plan.step(empty, {}, agents("eu", 20), NOW + 5)
    assert known.threshold("eu") > 0
    assert known.stage_started_ms == NOW + 5


def test_stages_advance_only_in_windows() -> None:
    window = {"days": ["mon"], "start": "09:00", "end": "17:00"}
    monday = int(datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() * 1000)
    going = begun(spec={"windows": [window]})
    night = plan.step(going, GOOD, agents("eu", 20), monday + 10 * 3600_000)
    assert night.stage == 0
    assert "outside the windows" in plan.verdict(going, GOOD, monday + 10 * 3600_000).reason
    assert plan.step(going, GOOD, agents("eu", 20), monday).stage == 1


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        ({"days": ["mon"]}, (23, 12), True),
        ({"days": ["tue"]}, (23, 12), False),
        ({"start": "09:00", "end": "17:00"}, (23, 17), False),
        ({"start": "22:00", "end": "06:00", "days": ["mon"]}, (23, 23), True),
        ({"start": "22:00", "end": "06:00", "days": ["mon"]}, (24, 5), True),
        ({"start": "22:00", "end": "06:00", "days": ["mon"]}, (24, 23), False),
        ({"start": "13:00", "end": "14:00", "time_zone": "Europe/Berlin"}, (23, 12), True),
        ({"start": "23:00"}, (23, 23), True),
        # Berlin is two hours ahead of UTC until 25 October 2026, 01:00 UTC, when its clocks go back from 3 to 2.
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, (-6, 0), True),
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, (-6, 1), True),
        ({"start": "02:00", "end": "03:00", "time_zone": "Europe/Berlin"}, (-6, 2), False),
        ({"start": "03:00", "end": "04:00", "time_zone": "Europe/Berlin"}, (-6, 2), True),
    ],
)
def test_windows(window: dict[str, Any], moment: tuple[int, int], is_open: bool) -> None:
    day, hour = moment
    now_ms = int((datetime(2026, 11, 1, hour, tzinfo=UTC) + timedelta(days=day - 1)).timestamp() * 1000)
    assert plan.open_now([Window.model_validate(window)], now_ms) is is_open
    assert plan.open_now([], now_ms)


def test_wall_clock_changes_do_not_end_a_stage() -> None:
    slow = begun(stages=[{**STAGES[0], "duration": "1h"}, STAGES[1]])
    for moved_ms in (-7_200_000, 86_400_000):
        assert plan.step(slow, GOOD, agents("eu", 20), NOW + moved_ms).stage == 0
    observed = dataclasses.replace(slow, observed_s=3600.0)
    after = plan.step(observed, GOOD, agents("eu", 20), NOW)
    assert (after.stage, after.observed_s) == (1, 0.0)


def test_approvals() -> None:
    waiting = rollout(state=RolloutState.PENDING_APPROVAL, needed=2, four_eyes=True)
    with pytest.raises(Conflict, match="ann made this change"):
        plan.approve(waiting, "ann", waiting.digest, NOW)
    with pytest.raises(Conflict, match="review it again"):
        plan.approve(waiting, "bob", "e" * 64, NOW)
    with pytest.raises(Conflict, match="review it again"):
        plan.approve(waiting, "bob", "", NOW)
    one = plan.approve(waiting, "bob", waiting.digest[:8], NOW)
    assert not plan.approved(one)
    with pytest.raises(Conflict, match="has already approved a-2"):
        plan.approve(one, "bob", waiting.digest, NOW)
    assert plan.approved(plan.approve(one, "eve", waiting.digest, NOW))
    assert plan.reject(one, "no", NOW).state is RolloutState.REJECTED
    with pytest.raises(Conflict, match="cannot be approved"):
        plan.approve(rollout(), "bob", waiting.digest, NOW)


def test_allowed_actions_by_state() -> None:
    going = begun()
    paused = plan.pause(going, "lunch")
    assert plan.resume(paused).state is RolloutState.RUNNING
    with pytest.raises(Conflict, match="a-2 is running; it cannot be resumed"):
        plan.resume(going)
    with pytest.raises(Conflict, match="paused; it cannot be paused"):
        plan.pause(paused, "again")
    with pytest.raises(Conflict, match="review it again"):
        plan.promote(going, 1, "", GOOD, [], NOW)
    assert plan.promote(paused, 0, "trust me", GOOD, agents("eu", 20), NOW).stage == 1
    aborted = plan.abort(going, "no", NOW)
    assert (aborted.state, aborted.active) == (RolloutState.ABORTED, False)
    for action in (plan.roll_back, plan.pause):
        with pytest.raises(Conflict):
            action(aborted, "")
    assert plan.supersede(aborted, "a-3", NOW) is aborted
    assert plan.supersede(going, "a-3", NOW).state is RolloutState.SUPERSEDED
    at_once = plan.complete_at_once(going, "at once", NOW)
    assert (at_once.state, at_once.thresholds) == (RolloutState.COMPLETED, ALL)
    assert dataclasses.replace(going, thresholds={"": 7}).threshold("eu") == 7


def test_rollout_that_cannot_begin_is_held_with_the_reason() -> None:
    held = plan.hold(rollout(), "region eu has not fetched 1 of the 2 files")
    assert (held.state, held.reason) == (RolloutState.HELD, "region eu has not fetched 1 of the 2 files")
    assert plan.hold(held, held.reason) is held
    assert plan.hold(held, "something else").reason == "something else"
    paused = rollout(state=RolloutState.PAUSED)
    assert plan.hold(paused, "files") is paused


def test_stage_without_agents_stays_held() -> None:
    first = plan.begin(rollout(), [], 1000)
    waiting = dataclasses.replace(first, thresholds={"": 0})
    with patch.object(plan, "bucket", lambda *_: -1):
        assert plan.step(waiting, {}, [("eu", "x")], 2000).state is RolloutState.HELD

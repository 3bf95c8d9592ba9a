import dataclasses

from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.counts import Counts, Gate, RegionView, Trouble, TroubledAgent, Verdict
from relay.control.rollouts.rollout import RolloutState
from relay.control.rollouts.view import assignment_view, revision_hash, rollout_view
from relay.policy.published import CONFIG
from relay.policy.strategy import StrategySpec
from tests.control.rollouts.made import revision, rollout

REGIONS = {
    "eu": RegionView(Counts(targets=2, applied=1, holding=1)),
    "us": RegionView(Counts(targets=1), connected=False),
}
GATE = Gate(Verdict.WAITING, "5m left")


def test_view_of_a_running_rollout() -> None:
    first = plan.begin(rollout(), [("eu", "x")], 1000)
    second = plan.advance(first, Gate(Verdict.PASS, "all well"), REGIONS, [("eu", "x")], 2000)
    view = rollout_view(second, REGIONS, GATE, [TroubledAgent("x", "eu", Trouble.FAILED, "no")])
    assert view["troubled"] == [{"agent": "x", "region": "eu", "state": "failed", "message": "no"}]
    assert (view["state"], view["stage"]) == ("running", 1)
    assert [s["state"] for s in view["stages"]] == ["passed", "current", "waiting"]
    assert view["stages"][0]["counts"]["targets"] == 3
    assert view["stages"][1]["gate"] == {"verdict": "waiting", "reason": "5m left"}
    assert view["stages"][2]["started"] is None
    assert {name: r["state"] for name, r in view["regions"].items()} == {"eu": "following", "us": "dark"}
    assert view["stable"] != view["candidate"]
    assert len(view["candidate"]) == 12


def test_view_of_regions_during_rollback() -> None:
    halted = {"eu": RegionView(Counts(targets=2), halted="3 failed")}
    assert rollout_view(rollout(), halted, GATE, [])["regions"]["eu"]["state"] == "halted"
    back = rollout(state=RolloutState.ROLLING_BACK, stage_started_ms=5, reason="bad")
    view = rollout_view(back, REGIONS, None, [])
    assert view["regions"]["eu"]["state"] == "divergent"
    assert view["stages"][0]["gate"] == {"verdict": "fail", "reason": "bad"}


def test_view_of_a_pending_rollout() -> None:
    view = rollout_view(rollout(state=RolloutState.PENDING_APPROVAL, stable=None), {}, None, [])
    assert view["stable"] is None
    assert [s["state"] for s in view["stages"]] == ["waiting"] * 3


def test_view_of_a_stage_of_regions() -> None:
    spec = StrategySpec.model_validate({"stages": [{"name": "first", "regions": ["eu"]}]})
    assert rollout_view(rollout(spec=spec), {}, None, [])["stages"][0]["regions"] == ["eu"]


def test_view_of_an_assignment() -> None:
    done = rollout(state=RolloutState.COMPLETED, name="a-1")
    held = AssignmentState("a", CONFIG, stable=revision(1), declared=revision(1), rollout=done)
    view = assignment_view(held)
    assert view["in_force"] == {"template": "t@v1", "revision": revision_hash(revision(1))}
    assert (view["taken_back"], view["rollout"], view["state"]) == (None, "a-1", "completed")
    back = rollout(state=RolloutState.ROLLED_BACK)
    view = assignment_view(dataclasses.replace(held, declared=revision(2), rollout=back))
    assert view["taken_back"] == {"template": "t@v1", "revision": revision_hash(revision(2))}
    waiting = assignment_view(dataclasses.replace(held, declared=revision(2), rollout=rollout()))
    assert waiting["taken_back"] is None
    fresh = assignment_view(AssignmentState("a", CONFIG))
    assert (fresh["in_force"], fresh["rollout"], fresh["state"]) == (None, None, None)

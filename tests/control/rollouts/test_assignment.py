import dataclasses

from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import revision_from_plain
from relay.control.rollouts.rollout import Passed, RolloutState
from relay.policy.published import CONFIG
from tests.control.rollouts.made import GlobalConfig, revision, rollout


def state(stable: GlobalConfig | None, **more: object) -> AssignmentState:
    return AssignmentState("a", CONFIG, stable=stable, declared=stable, **more)  # type: ignore[arg-type]


def test_regions_pin_their_own_variables() -> None:
    one = revision(1, variables={"eu": "eu@1"})
    assert one.for_region("eu").variables == "eu@1"
    assert one.for_region("us").variables == ""
    assert revision_from_plain(one.plain()) == one
    assert revision_from_plain(None) is None


def test_running_rollout_is_published_with_the_region_threshold() -> None:
    going = dataclasses.replace(rollout(), thresholds={"": 5, "eu": 9})
    published = state(revision(1), rollout=going).for_region("eu")
    assert published.rollout is not None
    assert (published.rollout.id, published.rollout.threshold) == ("a-2", 9)
    assert published.stable is not None
    over = state(revision(1), rollout=plan.roll_back(going, "bad"))
    assert over.for_region("eu").rollout is None
    assert over.for_region("eu").stable == revision(1).for_region("eu")


def test_region_gets_only_relevant_revisions() -> None:
    assert state(revision(1)).concerns("eu")
    assert state(revision(1, region="eu")).concerns("eu")
    assert not state(revision(1, region="us")).concerns("eu")
    assert not state(revision(1), observe_only=True).concerns("eu")
    leaving = state(revision(1, region="eu"), rollout=rollout(candidate=revision(2, region="us")))
    assert leaving.concerns("eu"), "agents there have yet to be taken off it"
    assert leaving.concerns("us")


def test_superseded_rollout_keeps_its_agents_until_the_newer_one_ends() -> None:
    first = dataclasses.replace(rollout(), thresholds={"": 5})
    pending = dataclasses.replace(rollout(candidate=revision(3)), name="a-3", state=RolloutState.PENDING_APPROVAL)
    waiting = state(revision(1), rollout=first, pending=pending)
    begun = waiting.after(dataclasses.replace(pending, state=RolloutState.RUNNING))
    assert begun.pending is None
    assert [layer.name for layer in begun.layers] == ["a-2"]
    assert begun.for_region("eu").layers[0].threshold == 5
    assert begun.rollout is not None
    done = begun.after(dataclasses.replace(begun.rollout, state=RolloutState.COMPLETED))
    assert (done.stable, done.layers) == (revision(3), ())
    back = begun.after(dataclasses.replace(begun.rollout, state=RolloutState.ROLLING_BACK))
    assert (back.stable, back.layers) == (revision(1), ())
    rejected = waiting.after(dataclasses.replace(pending, state=RolloutState.REJECTED))
    assert (rejected.pending, rejected.rollout) == (None, first)


def test_observed_revision_does_not_become_stable() -> None:
    pending = dataclasses.replace(rollout(candidate=revision(3)), name="a-3", state=RolloutState.PENDING_APPROVAL)
    waiting = state(revision(1), observe_only=True, pending=pending)
    assert waiting.in_force == [], "nothing of it goes out while it waits"
    begun = waiting.after(dataclasses.replace(pending, state=RolloutState.RUNNING))
    assert (begun.observe_only, begun.stable) == (False, None)
    rejected = waiting.after(dataclasses.replace(pending, state=RolloutState.REJECTED))
    assert (rejected.observe_only, rejected.stable) == (True, revision(1))


def test_required_approvals_carry_over() -> None:
    assert state(revision(1)).asked == (0, False)
    assert state(revision(1), rollout=rollout(asked=(2, True))).asked == (2, True)
    both = state(revision(1), rollout=rollout(asked=(1, True)), pending=rollout(asked=(1, False), needed=3))
    assert both.asked == (3, True)
    assert AssignmentState.from_plain("a", CONFIG, both.plain(), {"a-2": rollout()}).name == "a"


def test_revisions_that_agents_may_have_or_get() -> None:
    pending = rollout(candidate=revision(4), name="a-3", state=RolloutState.PENDING_APPROVAL)
    held = AssignmentState("a", CONFIG, stable=revision(1), declared=revision(3), rollout=rollout(), pending=pending)
    assert held.revisions == [revision(1), revision(2), revision(1), revision(3), revision(4)]
    assert (held.latest, state(None).latest, state(None).revisions) == ("a-3", "", [])


def test_region_without_the_stable_revision() -> None:
    held = AssignmentState("a", CONFIG, stable=revision(1), rollout=rollout(), earlier=(revision(0),))
    assert held.for_region("eu", lambda _: False).stable is None
    assert held.for_region("eu", lambda _: True).stable is not None
    assert len(held.for_region("eu").earlier) == 1


def test_additional_approval_does_not_start_the_rollout() -> None:
    pending = rollout(candidate=revision(3), name="a-3", state=RolloutState.PENDING_APPROVAL)
    waiting = state(revision(1), pending=pending)
    more = dataclasses.replace(pending, reason="one of two")
    assert waiting.after(more).pending == more


def test_previous_stable_revision_is_kept_unless_flawed() -> None:
    done = rollout(state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=rollout()).after(done).earlier == (revision(1),)
    assert state(revision(1), rollout=rollout(), flawed=True).after(done).earlier == ()
    same = rollout(candidate=revision(1), state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=same).after(same).earlier == ()
    bad = dataclasses.replace(done, passed=(Passed(1, 2, {"failed": 3}, {"verdict": "pass", "reason": ""}),))
    assert state(revision(1), rollout=rollout()).after(bad).flawed


def test_paused_rollout_keeps_its_layers() -> None:
    paused = rollout(state=RolloutState.PAUSED)
    assert state(revision(1), rollout=rollout(), layers=(rollout(name="a-1"),)).after(paused).layers


def test_completed_revision_is_stable_in_every_region() -> None:
    done = rollout(candidate=revision(1), state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=done).for_region("eu", lambda _: False).stable is not None

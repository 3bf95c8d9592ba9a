import dataclasses

from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import revision_from_plain
from relay.control.rollouts.rollout import Passed, RolloutState
from relay.policy.published import CONFIG
from tests.control.rollouts.made import GlobalConfig, revision, rollout


def state(stable: GlobalConfig | None, **more: object) -> AssignmentState:
    return AssignmentState("a", CONFIG, stable=stable, declared=stable, **more)  # type: ignore[arg-type]


def test_regions_differ_in_the_variables_that_they_pin() -> None:
    one = revision(1, variables={"eu": "eu@1"})
    assert one.for_region("eu").variables == "eu@1"
    assert one.for_region("us").variables == ""
    assert revision_from_plain(one.plain()) == one
    assert revision_from_plain(None) is None


def test_what_is_going_on_is_published_with_the_threshold_of_the_region() -> None:
    going = dataclasses.replace(rollout(), thresholds={"": 5, "eu": 9})
    published = state(revision(1), rollout=going).for_region("eu")
    assert published.rollout is not None
    assert (published.rollout.id, published.rollout.threshold) == ("a-2", 9)
    assert published.stable is not None
    over = state(revision(1), rollout=plan.roll_back(going, "bad"))
    assert over.for_region("eu").rollout is None
    assert over.for_region("eu").stable == revision(1).for_region("eu")


def test_a_region_sees_what_can_concern_it() -> None:
    assert state(revision(1)).concerns("eu")
    assert state(revision(1, region="eu")).concerns("eu")
    assert not state(revision(1, region="us")).concerns("eu")
    assert not state(revision(1), observe_only=True).concerns("eu")
    leaving = state(revision(1, region="eu"), rollout=rollout(candidate=revision(2, region="us")))
    assert leaving.concerns("eu"), "agents there have yet to be taken off it"
    assert leaving.concerns("us")


def test_what_is_superseded_stays_at_its_agents_until_the_newer_one_is_over() -> None:
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


def test_what_was_only_observed_is_no_stable_revision() -> None:
    pending = dataclasses.replace(rollout(candidate=revision(3)), name="a-3", state=RolloutState.PENDING_APPROVAL)
    waiting = state(revision(1), observe_only=True, pending=pending)
    assert waiting.in_force == [], "nothing of it goes out while it waits"
    begun = waiting.after(dataclasses.replace(pending, state=RolloutState.RUNNING))
    assert (begun.observe_only, begun.stable) == (False, None)
    rejected = waiting.after(dataclasses.replace(pending, state=RolloutState.REJECTED))
    assert (rejected.observe_only, rejected.stable) == (True, revision(1))


def test_approvals_that_were_asked_for_are_asked_for_still() -> None:
    assert state(revision(1)).asked == (0, False)
    assert state(revision(1), rollout=rollout(asked=(2, True))).asked == (2, True)
    both = state(revision(1), rollout=rollout(asked=(1, True)), pending=rollout(asked=(1, False), needed=3))
    assert both.asked == (3, True)
    assert AssignmentState.from_plain("a", CONFIG, both.plain(), {"a-2": rollout()}).name == "a"


def test_what_may_be_at_agents_or_come_to_them() -> None:
    pending = rollout(candidate=revision(4), name="a-3", state=RolloutState.PENDING_APPROVAL)
    held = AssignmentState("a", CONFIG, stable=revision(1), declared=revision(3), rollout=rollout(), pending=pending)
    assert held.revisions == [revision(1), revision(2), revision(1), revision(3), revision(4)]
    assert (held.latest, state(None).latest, state(None).revisions) == ("a-3", "", [])


def test_a_region_that_cannot_make_what_is_stable_never_had_it() -> None:
    held = AssignmentState("a", CONFIG, stable=revision(1), rollout=rollout(), earlier=(revision(0),))
    assert held.for_region("eu", lambda _: False).stable is None
    assert held.for_region("eu", lambda _: True).stable is not None
    assert len(held.for_region("eu").earlier) == 1


def test_an_approval_more_is_no_beginning() -> None:
    pending = rollout(candidate=revision(3), name="a-3", state=RolloutState.PENDING_APPROVAL)
    waiting = state(revision(1), pending=pending)
    more = dataclasses.replace(pending, reason="one of two")
    assert waiting.after(more).pending == more


def test_what_was_stable_is_kept_to_fall_back_to_unless_it_was_flawed() -> None:
    done = rollout(state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=rollout()).after(done).earlier == (revision(1),)
    assert state(revision(1), rollout=rollout(), flawed=True).after(done).earlier == ()
    same = rollout(candidate=revision(1), state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=same).after(same).earlier == ()
    bad = dataclasses.replace(done, passed=(Passed(1, 2, {"failed": 3}, {"verdict": "pass", "reason": ""}),))
    assert state(revision(1), rollout=rollout()).after(bad).flawed


def test_it_goes_on_as_it_is() -> None:
    paused = rollout(state=RolloutState.PAUSED)
    assert state(revision(1), rollout=rollout(), layers=(rollout(name="a-1"),)).after(paused).layers


def test_what_went_out_last_is_stable_everywhere() -> None:
    done = rollout(candidate=revision(1), state=RolloutState.COMPLETED)
    assert state(revision(1), rollout=done).for_region("eu", lambda _: False).stable is not None

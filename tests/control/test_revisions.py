from relay.control.revisions import AssignmentState, GlobalRevision
from relay.policy.model import Selector
from relay.policy.rollout import EVERYONE


def revision(rate: int) -> GlobalRevision:
    return GlobalRevision("t@v1", "00", {"rate": rate}, {"eu": "eu@1"}, 1)


def state(stable: GlobalRevision | None, candidate: GlobalRevision | None, **labels: str) -> AssignmentState:
    return AssignmentState("a", "", 0, Selector(labels=dict(labels)), 3, stable, candidate, EVERYONE)


def test_regions_differ_in_the_variables_that_they_pin() -> None:
    one = revision(1)
    assert one.for_region("eu").variables == "eu@1"
    assert one.for_region("us").variables == ""
    assert GlobalRevision.decode(one.encode()) == one
    assert GlobalRevision.decode(None) is None


def test_a_change_is_published_as_a_rollout_with_its_number() -> None:
    published = state(revision(1), revision(2)).for_region("eu")
    assert published.rollout is not None
    assert (published.rollout.id, published.rollout.threshold) == ("a-3", EVERYONE)
    assert published.stable is not None
    assert state(revision(1), None).for_region("eu").rollout is None


def test_a_region_sees_what_can_concern_it() -> None:
    assert state(revision(1), None).concerns("eu")
    assert state(revision(1), None, region="eu").concerns("eu")
    assert not state(revision(1), None, region="us").concerns("eu")

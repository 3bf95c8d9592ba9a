from __future__ import annotations

from typing import Any

from relay.fleet.cohort import Cohorts
from relay.fleet.guard import frozen_rollouts, halted_rollouts, judge
from relay.opamp.offer import Failure, OfferedSlot
from relay.opamp.record import Record
from relay.policy.snapshot import ConfigContent, Content, Snapshot, build
from tests.fleet.agents import record
from tests.policy.filled import filled, package
from tests.policy.published import published, resources, revision


def hash_of(content: Content, _: object = None) -> bytes:
    assert isinstance(content, ConfigContent)
    return content.content_hash


def snapshot(retry: int = 0, **more: Any) -> Snapshot:
    guard = {"max_failures": 2, "min_samples": 3}
    made = published(
        "a", stable=revision(1), candidate=revision(2), threshold=1 << 51, retry=retry,
        **{"local_guard": guard, "candidate_ttl_s": 60.0, **more},
    )  # fmt: skip
    return build(resources(made))


def agents(policy: Snapshot, failed: int = 0, applied: int = 0, unhealthy: int = 0) -> list[Record]:
    content = hash_of(policy.assignments[0].branches[0][1])
    slots = (OfferedSlot("", "a", content),)
    found = [record(str(i), healthy=i >= unhealthy) for i in range(failed + applied)]
    for i, agent in enumerate(found):
        agent.config.offer(b"h", slots, True)
        if i < applied:
            agent.config.applied = slots
        else:
            agent.config.failures = (Failure("", content, 0, "no", 1),)
    return found


def test_too_many_failures_halt_the_rollout_here() -> None:
    policy = snapshot()
    assert judge(policy, agents(policy, failed=2), {}, hash_of) == {}, "too few decided"
    assert judge(policy, agents(policy, failed=1, applied=9), {}, hash_of) == {}
    found = judge(policy, agents(policy, failed=2, applied=1), {}, hash_of)
    assert found == {"a-1/0": "2 of 3 agents failed or are unhealthy on it"}
    assert judge(policy, agents(policy, applied=3, unhealthy=2), {}, hash_of) == {
        "a-1/0": "2 of 3 agents failed or are unhealthy on it"
    }
    assert judge(policy, agents(policy, failed=2, applied=1), found, hash_of) == {}, "said once"
    assert halted_rollouts(policy, found) == {"a-1"}


def test_retry_is_judged_separately() -> None:
    policy = snapshot(retry=1)
    assert halted_rollouts(policy, {"a-1/0": "2 of 3"}) == frozenset()
    assert judge(policy, agents(policy, failed=3), {}, hash_of) == {}, (
        "failures of an earlier retry generation are forgiven"
    )


def test_previously_unhealthy_agents_do_not_count() -> None:
    policy = snapshot()
    sick = agents(policy, applied=3, unhealthy=3)
    for agent in sick:
        agent.config.baseline = (False,)
    assert judge(policy, sick, {}, hash_of) == {}


def test_without_a_guard_nothing_is_judged() -> None:
    policy = snapshot(local_guard=None)
    assert judge(policy, agents(policy, failed=9), {}, hash_of) == {}


def test_candidates_freeze_when_the_policy_is_too_old() -> None:
    assert frozen_rollouts(snapshot(), 59) == frozenset()
    assert frozen_rollouts(snapshot(), 61) == {"a-1"}
    assert frozen_rollouts(snapshot(candidate_ttl_s=None), 1e9) == frozenset()


def test_packages_are_guarded_too() -> None:
    old, new = (package("agent", digit, (digit, {"os.type": "linux"})) for digit in "12")
    policy = filled(old, candidate=new, threshold=1 << 52, rollout={"local_guard": {"max_failures": 1}})
    cohorts = Cohorts("eu", "all")
    cohorts.change(policy)
    agents = [record(name, healthy=False, os__type=os) for name, os in (("a", "linux"), ("b", "plan9"))]
    offer = cohorts.packages(agents[0])
    assert offer is not None
    agents[0].offer_packages(offer)
    assert judge(policy, agents, {}, cohorts.hash_of) == {}
    assert agents[0].packages is not None
    agents[0].packages.baseline = (True,)
    agents[0].packages.take_status(offer.hash, "APPLIED", "")
    assert agents[0].runs(offer.slots[0].content_hash)
    assert judge(policy, agents, {}, cohorts.hash_of) == {"p-1/0": "1 of 1 agents failed or are unhealthy on it"}

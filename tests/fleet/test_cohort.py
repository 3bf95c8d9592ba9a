import pytest

from relay.fleet.cohort import Cohorts
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.model import Selector
from relay.policy.published import Published
from relay.policy.rollout import EVERYONE
from relay.policy.snapshot import ConfigContent, Snapshot, build
from tests.fleet.agents import record
from tests.policy.filled import LINUX, filled, package
from tests.policy.published import published, resources, revision


def snapshot(*assignments: Published) -> Snapshot:
    return build(resources(*assignments))


PROD = Selector(labels={"tier": "prod"})


def test_agents_with_one_answer_share_an_offer() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(
        snapshot(published("p", stable=revision(2), priority=1, selector=PROD), published("d", stable=revision(1)))
    )
    one, two, other = record("1", tier="prod", host="x"), record("2", tier="prod", host="y"), record("3", tier="dev")
    assert cohorts.offer(one) is cohorts.offer(two)
    assert cohorts.offer(one) is not cohorts.offer(other)
    assert len(cohorts) == 2
    offer = cohorts.offer(one)
    assert offer is not None
    assert [slot.assignment for slot in offer.slots] == ["p"]
    body = pb.ServerToAgent.FromString(offer.field).remote_config.config.config_map[""].body
    assert b"rate: 2" in body


def test_content_change_touches_cohorts_not_agents() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(1)), published("b", stable=revision(1), slot="b")))
    agent = record()
    before, cohort = cohorts.offer(agent), agent.cohort
    assert cohorts.change(snapshot(published("a", stable=revision(2)), published("b", stable=revision(1), slot="b")))
    assert agent.cohort is cohort
    after = cohorts.offer(agent)
    assert before is not None
    assert after is not None
    assert before.config_hash != after.config_hash


def test_change_that_concerns_no_agent_is_reported() -> None:
    cohorts = Cohorts("local", "all")
    policy = snapshot(published("a", stable=revision(1)))
    cohorts.cohort_of(record("early"))
    assert cohorts.change(policy)
    offer = cohorts.offer(record())
    assert not cohorts.change(snapshot(published("a", stable=revision(1))))
    assert cohorts.offer(record()) is offer
    assert cohorts.snapshot is not policy


def test_new_selector_terms_reassign_agents() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("d", stable=revision(1))))
    agent = record(tier="prod")
    cohorts.offer(agent)
    assert cohorts.change(
        snapshot(published("d", stable=revision(1)), published("p", stable=revision(2), priority=1, selector=PROD))
    )
    offer = cohorts.offer(agent)
    assert offer is not None
    assert [slot.assignment for slot in offer.slots] == ["p"]


def test_rollout_threshold_is_part_of_the_key() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(1), candidate=revision(2), threshold=EVERYONE)))
    offer = cohorts.offer(record())
    assert offer is not None
    assert b"rate: 2" in offer.field


def test_stale_offers_are_dropped() -> None:
    cohorts = Cohorts("local", "all")
    agent = record()
    for rate in range(1, 30):
        stable, candidate = revision(rate), revision(rate + 1)
        cohorts.change(snapshot(published("a", stable=stable, candidate=candidate, threshold=EVERYONE)))
        cohorts.offer(agent)
    held = (cohorts._offers, cohorts._offers_before, cohorts._rendered, cohorts._rendered_before)
    assert [len(h) for h in held] == [1, 1, 1, 1]


def test_capabilities_split_cohorts_and_no_match_offers_nothing() -> None:
    cohorts = Cohorts("local", ())
    cohorts.change(snapshot(published("p", stable=revision(2), selector=PROD)))
    assert cohorts.offer(record(tier="prod")) is None, "an attribute that is not trusted is no label"
    cohorts.offer(record(accepts=False))
    assert len(cohorts) == 2
    cohorts.change(snapshot())
    assert cohorts.offer(record()) is None


def test_prepared_offers_are_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(1))))
    first = cohorts.offer(record())
    following = snapshot(published("a", stable=revision(2)))
    rendered = cohorts.prepare(following)
    assert len(rendered) == 1
    assert cohorts.offer(record()) is first, "nothing has changed yet"
    monkeypatch.setattr(ConfigContent, "render", None)
    assert cohorts.change(following, rendered)
    offer = cohorts.offer(record())
    assert offer is not None
    assert b"rate: 2" in offer.field
    assert cohorts.prepare(following) == {}
    assert cohorts.prepare(snapshot(published("a", stable=revision(3), selector=Selector(labels={"t": "x"})))) == {}


def test_packages_of_a_cohort() -> None:
    cohorts = Cohorts("local", "all")
    agent = record(os__type="linux")
    cohorts.change(filled(package("agent", "1", ("1", LINUX))))
    offer = cohorts.packages(agent)
    assert offer is not None
    assert [(p.name, p.sha256) for p in offer.packages] == [("agent", bytes.fromhex("1" * 64))]
    assert list(cohorts.package_offers()) == [offer]
    assert cohorts.offer(agent) is None
    assert cohorts.packages(record("b", os__type="plan9")) is None
    (assignment,) = cohorts.snapshot.assignments
    (content,) = assignment.contents
    assert cohorts.hash_of(content, agent) == offer.slots[0].content_hash
    assert cohorts.hash_of(content, record("b", os__type="plan9")) is None
    assert cohorts.change(filled(package("agent", "2", ("2", LINUX))))
    newer = cohorts.packages(agent)
    assert newer is not None
    assert newer.hash != offer.hash


def test_applied_content_decides_after_a_failure() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(2))))
    agent = record()
    offer = cohorts.offer(agent)
    assert offer is not None
    agent.offer_config(offer.config_hash, offer.slots)
    agent.config.fail(offer.slots, "no")
    agent.cohort = None
    assert cohorts.cohort_of(agent).key[4] == ()
    agent.config.applied = offer.slots
    assert [slot for _, _, slot in cohorts.cohort_of(agent).key[4]] == [offer.slots[0].content_hash]


def test_agents_with_the_candidate_keep_it_in_a_frozen_rollout() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(1), candidate=revision(2), threshold=EVERYONE)))
    has, had = record("has"), record("had")
    for agent in (has, had):
        offer = cohorts.offer(agent)
        assert offer is not None
        agent.offer_config(offer.config_hash, offer.slots)
    cohorts.restrict(frozenset(), frozenset({"a-1"}))
    assert cohorts.cohort_of(had) is cohorts.cohort_of(has)
    had.config.slots = ()
    assert cohorts.cohort_of(had) is not cohorts.cohort_of(has)


def test_repeated_restrictions_change_nothing() -> None:
    cohorts = Cohorts("local", "all")
    assert not cohorts.restrict(frozenset(), frozenset())
    assert cohorts.evaluator.halted == frozenset()


def test_empty_cohorts_are_dropped() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("p", stable=revision(2), selector=PROD), published("d", stable=revision(1))))
    one, other = record("1", tier="prod"), record("2", tier="dev")
    cohorts.cohort_of(one)
    cohorts.cohort_of(other)
    cohorts.drop_unused([one])
    assert len(cohorts) == 1


def test_agents_of_a_missing_assignment_keep_what_they_have() -> None:
    cohorts = Cohorts("local", "all")
    agent = record("1")
    held = snapshot(published("a", stable=revision(1)), published("b", stable=revision(1), slot="b"))
    cohorts.change(held)
    offer = cohorts.offer(agent)
    assert offer is not None
    agent.offer_config(offer.config_hash, offer.slots)
    less = snapshot(published("a", stable=revision(1)))
    cohorts.change(less, missing=frozenset({"b"}))
    assert cohorts.offer(agent) is None, "b is what it has, and is not here"
    cohorts.change(less, in_doubt=True)
    assert cohorts.offer(agent) is None, "its assignment is gone, and perhaps only here"
    assert cohorts.offer(record("2")) is None, "nobody knows what it had"
    cohorts.change(held, in_doubt=True)
    assert cohorts.offer(agent) is not None
    assert cohorts.packages(agent) is None
    assert cohorts.withheld(agent) == ((), ())


def test_content_hash_for_an_agent() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(snapshot(published("a", stable=revision(1))))
    stable = cohorts.snapshot.assignments[0].stable
    assert stable is not None
    assert isinstance(stable, ConfigContent)
    assert cohorts.hash_of(stable, record()) == stable.content_hash
    cohorts.change(filled(package("agent", "1", ("1", LINUX))))
    fill = cohorts.snapshot.assignments[0].stable
    assert fill is not None
    assert cohorts.hash_of(fill, record(os__type="windows")) is None
    assert cohorts.hash_of(fill, record(os__type="linux")) is not None


def test_package_sets_that_contain_a_file() -> None:
    cohorts = Cohorts("local", "all")
    cohorts.change(filled(package("agent", "1", ("1", {}))))
    cohorts.cohort_of(record())
    assert len(cohorts.contents_with("1" * 64)) == 1
    assert cohorts.contents_with("2" * 64) == frozenset()

from relay.policy.evaluate import CohortKey, Evaluator, config_hash
from relay.policy.model import Selector
from relay.policy.rollout import EVERYONE, bucket
from relay.policy.selector import Facts
from relay.policy.snapshot import Published, Snapshot, build
from tests.policy.published import published, resources, revision


def evaluator(*assignments: Published) -> Evaluator:
    snapshot = build(resources(*assignments))
    assert snapshot.rejected == {}
    return Evaluator(snapshot)


def facts(agent_id: str = "x", **labels: str) -> Facts:
    return Facts(agent_id, labels, {})


def names(subject: Evaluator, agent: Facts) -> tuple[str, ...]:
    decision = subject.decide(subject.key(agent, 2))
    return decision.assignments if decision else ()


def test_the_highest_priority_wins_its_slot_then_the_smallest_name() -> None:
    subject = evaluator(
        published("low", stable=revision(), priority=1),
        published("high", stable=revision(), priority=9, selector=Selector(labels={"tier": "prod"})),
        published("b", stable=revision(), priority=5, slot="extra"),
        published("a", stable=revision(), priority=5, slot="extra"),
    )
    assert names(subject, facts(tier="prod")) == ("high", "a")
    assert names(subject, facts()) == ("low", "a")


def test_no_match_no_decision() -> None:
    subject = evaluator(published("a", stable=revision(), selector=Selector(agent_ids=["y"])))
    assert names(subject, facts("x")) == ()
    assert names(subject, facts("y")) == ("a",)
    assert names(Evaluator(Snapshot()), facts()) == ()


def test_the_bucket_decides_between_stable_and_candidate() -> None:
    limit = bucket("a-1", "x")
    for threshold, expected in ((0, 1), (limit, 1), (limit + 1, 2), (EVERYONE, 2)):
        subject = evaluator(published("a", stable=revision(1), candidate=revision(2), threshold=threshold))
        decision = subject.decide(subject.key(facts("x"), 2))
        assert decision is not None
        assert decision.choices[0].content.resolved.values["rate"] == expected


def test_without_a_stable_revision_the_next_match_applies() -> None:
    subject = evaluator(
        published("new", candidate=revision(2), threshold=0, priority=9), published("old", stable=revision(1))
    )
    assert names(subject, facts()) == ("old",)


def test_keys_stay_while_only_contents_change() -> None:
    one = evaluator(published("a", stable=revision(1)))
    two = evaluator(published("a", stable=revision(2)))
    three = evaluator(published("a", stable=revision(1), selector=Selector(labels={"t": "x"})))
    four = evaluator(published("a", stable=revision(1), candidate=revision(2), threshold=EVERYONE))
    assert one.keying == two.keying
    five = evaluator(published("a", stable=revision(1), candidate=revision(2), threshold=5))
    assert len({str(e.keying) for e in (one, three, five)}) == 3
    assert one.keying == four.keying, "a rollout that everybody is on splits no cohort"
    key: CohortKey = one.key(facts(), 2)
    assert key == two.key(facts(), 2)


def test_the_hash_covers_slots_contents_and_retries() -> None:
    one = config_hash([("", b"a"), ("b", b"c")])
    assert one == config_hash([("b", b"c"), ("", b"a")])
    assert len({one, config_hash([("", b"a")]), config_hash([("", b"a"), ("b", b"c")], retry=1)}) == 3

from typing import Any

from relay.opamp.offer import OfferedSlot
from relay.policy.evaluate import NOTHING, CohortKey, Decision, Evaluator, applied_of, config_hash
from relay.policy.model import Selector
from relay.policy.published import CONFIG, PACKAGES, PackageRevision, Published, PublishedRollout
from relay.policy.resources import assignment_resource
from relay.policy.rollout import BUCKETS, EVERYONE, bucket
from relay.policy.selector import Facts
from relay.policy.snapshot import ConfigContent, Snapshot, build
from tests.policy.filled import LINUX, WINDOWS, filled, package
from tests.policy.filled import resources as filled_resources
from tests.policy.published import config, published, resources, revision


def evaluator(*assignments: Published) -> Evaluator:
    snapshot = build(resources(*assignments))
    assert snapshot.rejected == {}
    return Evaluator(snapshot)


def facts(agent_id: str = "x", **labels: str) -> Facts:
    return Facts(agent_id, labels, {})


def names(subject: Evaluator, agent: Facts) -> tuple[str, ...]:
    decision = subject.decide(subject.key(agent, 2))
    return decision.assignments if decision else ()


def test_highest_priority_wins_then_smallest_name() -> None:
    subject = evaluator(
        published("low", stable=revision(), priority=1),
        published("high", stable=revision(), priority=9, selector=Selector(labels={"tier": "prod"})),
        published("b", stable=revision(), priority=5, slot="extra"),
        published("a", stable=revision(), priority=5, slot="extra"),
    )
    assert names(subject, facts(tier="prod")) == ("high", "a")
    assert names(subject, facts()) == ("low", "a")


def test_no_match_gives_no_decision() -> None:
    subject = evaluator(published("a", stable=revision(), selector=Selector(agent_ids=["y"])))
    assert names(subject, facts("x")) == ()
    assert names(subject, facts("y")) == ("a",)
    assert names(Evaluator(Snapshot()), facts()) == ()


def test_bucket_decides_between_stable_and_candidate() -> None:
    limit = bucket("a-1", "x")
    for threshold, expected in ((0, 1), (limit, 1), (limit + 1, 2), (EVERYONE, 2)):
        subject = evaluator(published("a", stable=revision(1), candidate=revision(2), threshold=threshold))
        decision = subject.decide(subject.key(facts("x"), 2))
        assert decision is not None
        assert decision.choices[0].config.resolved.values["rate"] == expected


def test_next_match_applies_without_a_stable_revision() -> None:
    subject = evaluator(
        published("new", candidate=revision(2), threshold=0, priority=9), published("old", stable=revision(1))
    )
    assert names(subject, facts()) == ("old",)


def test_keys_are_stable_under_content_changes() -> None:
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


def test_hash_covers_slots_contents_and_retries() -> None:
    one = config_hash([("", b"a"), ("b", b"c")])
    assert one == config_hash([("b", b"c"), ("", b"a")])
    assert len({one, config_hash([("", b"a")]), config_hash([("", b"a"), ("b", b"c")], retry=1)}) == 3


def test_selector_is_part_of_its_revision() -> None:
    old, new = Selector(labels={"tier": "prod"}), Selector(labels={"tier": "dev"})
    moved = published(
        "a", stable=revision(1, selector=old), candidate=revision(1, selector=new), threshold=BUCKETS // 2
    )
    subject = evaluator(moved, published("low", stable=revision(9), priority=-1))
    agents = [str(i) for i in range(200)]
    taken_off = [a for a in agents if names(subject, facts(a, tier="prod")) == ("low",)]
    put_on = [a for a in agents if names(subject, facts(a, tier="dev")) == ("a",)]
    assert taken_off == put_on, "the same buckets decide"
    assert 60 < len(put_on) < 140


def test_agents_outside_the_strategy_stay_on_stable() -> None:
    limited = published(
        "a", stable=revision(1), candidate=revision(2), threshold=EVERYONE, selector=None, local_guard=None
    )
    assert limited.rollout is not None
    named = limited.rollout.model_copy(update={"selector": Selector(labels={"tier": "prod"})})
    subject = evaluator(limited.model_copy(update={"rollout": named}))
    assert rate(subject, facts(tier="prod")) == 2
    assert rate(subject, facts(tier="dev")) == 1


def test_failed_candidate_falls_back_and_is_retried_under_another_hash() -> None:
    going = published("a", stable=revision(1), candidate=revision(2), threshold=EVERYONE)
    subject = evaluator(going)
    fresh = subject.decide(subject.key(facts(), 2))
    assert fresh is not None
    failed = (("", fresh.choices[0].content_hash, 0),)
    assert rate(subject, facts(), failed=failed) == 1
    again = evaluator(going.model_copy(update={"retry": 1}))
    decision = again.decide(again.key(facts(), 2, failed=failed))
    assert decision is not None
    assert decision.choices[0].config.resolved.values["rate"] == 2
    assert decision.config_hash != fresh.config_hash, "the agent would take the old hash for the old failure"
    untroubled = again.decide(again.key(facts(), 2))
    assert untroubled is not None
    assert untroubled.config_hash == fresh.config_hash, "who did not fail need not apply it anew"
    both = (
        *failed,
        ("", config(build(resources(published("a", stable=revision(1)))).assignments[0].stable).content_hash, 0),
    )
    assert subject.decide(subject.key(facts(), 2, failed=both)).hashes == NOTHING.hashes


def test_halted_and_frozen_candidates() -> None:
    snapshot = build(resources(published("a", stable=revision(1), candidate=revision(2), threshold=EVERYONE)))
    content = config(snapshot.assignments[0].branches[0][1]).content_hash
    assert rate(Evaluator(snapshot, halted={"a-1"}), facts()) == 1
    frozen = Evaluator(snapshot, frozen={"a-1"})
    assert rate(frozen, facts()) == 1
    assert rate(frozen, facts(), held=[content]) == 2
    assert frozen.keying != Evaluator(snapshot).keying


def test_superseded_layers_keep_their_agents() -> None:
    first = PublishedRollout(id="a-1", candidate=revision(2), threshold=BUCKETS // 2)
    second = PublishedRollout(id="a-2", candidate=revision(3), threshold=BUCKETS // 4)
    base = published("a", stable=revision(1))
    before = evaluator(base.model_copy(update={"rollout": first}))
    after = evaluator(base.model_copy(update={"rollout": second, "layers": [first]}))
    seen = {(rate(before, facts(str(i))), rate(after, facts(str(i)))) for i in range(300)}
    assert seen == {(1, 1), (1, 3), (2, 2), (2, 3)}


def rate(subject: Evaluator, agent: Facts, **more: Any) -> int:
    decision = subject.decide(subject.key(agent, 2, **more))
    assert decision is not None
    value = decision.choices[0].config.resolved.values["rate"]
    assert isinstance(value, int)
    return value


def with_candidate(assignment: Published, **update: Any) -> Published:
    assert assignment.rollout is not None
    candidate = assignment.rollout.candidate.model_copy(update=update)
    return assignment.model_copy(update={"rollout": assignment.rollout.model_copy(update={"candidate": candidate})})


def test_each_revision_has_its_own_priority_and_slot() -> None:
    mine = bucket("a-1", "x")
    other = published("b", stable=revision(9), priority=5)
    for on in (True, False):
        going = published("a", stable=revision(1), candidate=revision(2), threshold=mine + int(on))
        subject = evaluator(with_candidate(going, priority=7), other)
        assert rate(subject, facts("x")) == (2 if on else 9), "only agents on the candidate leave the other assignment"
        subject = evaluator(with_candidate(going, slot="y"))
        decision = subject.decide(subject.key(facts("x"), 2))
        assert [c.slot for c in decision.choices] == (["y"] if on else [""])


def fleet_of(**attributes: str) -> Facts:
    return Facts("x", {}, attributes)


def files_of(subject: Evaluator, agent: Facts, **more: Any) -> list[str]:
    choice = subject.decide(subject.key(agent, 8, **more)).packages
    return [] if choice is None or choice.files is None else [file.sha256[0] for _, file in choice.files.files]


def test_each_agent_gets_its_matching_files() -> None:
    agent = package("agent", "1", ("1", LINUX), ("2", WINDOWS), ("3", {**LINUX, "host.arch": "arm64"}))
    subject = Evaluator(filled(agent, package("plugin", "1", ("4", {}))))
    assert files_of(subject, fleet_of(**LINUX)) == ["1", "4"]
    assert files_of(subject, fleet_of(**LINUX, **{"host.arch": "arm64"})) == ["3", "4"], "the closest one"
    assert files_of(subject, fleet_of(**WINDOWS)) == ["2", "4"]
    assert files_of(subject, fleet_of(**{"os.type": "plan9"})) == [], "the set is given whole or not at all"


def test_yanked_or_failed_packages_are_not_offered() -> None:
    agent = package("agent", "1", ("1", LINUX), ("2", WINDOWS))
    assert files_of(Evaluator(filled(agent, yanked=("agent@1",))), fleet_of(**LINUX)) == []
    assert files_of(Evaluator(filled(agent, yanked=("agent@2",))), fleet_of(**LINUX)) == ["1"]
    whole = Evaluator(filled(agent))
    decision = whole.decide(whole.key(fleet_of(**LINUX), 8))
    assert decision.packages is not None
    assert decision.choices == ()
    failed = (("", decision.packages.content_hash, 0),)
    assert files_of(whole, fleet_of(**LINUX), failed=failed) == []
    retried = Evaluator(filled(agent, retry=1))
    again = retried.decide(retried.key(fleet_of(**LINUX), 8, failed=failed))
    assert again.packages is not None
    assert again.packages_hash != decision.packages_hash


def test_candidate_without_a_matching_file_leaves_the_agent_unchanged() -> None:
    one, two = package("agent", "1", ("1", LINUX), ("2", WINDOWS)), package("agent", "2", ("3", LINUX))
    subject = Evaluator(filled(one, candidate=two, threshold=EVERYONE))
    assert files_of(subject, fleet_of(**LINUX)) == ["3"]
    assert files_of(subject, fleet_of(**WINDOWS)) == ["2"]
    frozen = Evaluator(subject.snapshot, frozen={"p-1"})
    assert files_of(frozen, fleet_of(**LINUX)) == ["1"]
    choice = subject.decide(subject.key(fleet_of(**LINUX), 8)).packages
    assert choice is not None
    assert files_of(frozen, fleet_of(**LINUX), held=[choice.content_hash]) == ["3"]


def test_revision_of_another_kind_is_refused() -> None:
    mixed = assignment_resource(PACKAGES, Published(name="p", stable=revision(1), rollout=None))
    missing = assignment_resource(
        PACKAGES, Published(name="q", stable=PackageRevision(packages=["a@1@x"]), rollout=None)
    )
    snapshot = build(dict([mixed, missing]))
    assert [(a.published.name, a.contents) for a in snapshot.assignments] == [("q", [])], "q keeps its agents"
    assert snapshot.rejected["PackageAssignment/p"] == "a revision is of a different kind"
    assert "Package/a@1@x is missing" in snapshot.rejected["PackageAssignment/q"]


# ---- a failure never changes which assignment an agent belongs to


def key_of(number: int) -> tuple[str, bytes, int]:
    """The failure of the revision with this rate."""
    return ("", content_of(number), 0)


def content_of(number: int) -> bytes:
    return config(build(resources(published("a", stable=revision(number)))).assignments[0].stable).content_hash


def rates(decision: Decision) -> list[tuple[str, object]]:
    return [(c.assignment.published.name, c.config.resolved.values["rate"]) for c in decision.choices]


def test_failed_agent_gets_its_last_applied_revision_of_the_same_assignment() -> None:
    mine = published("a", stable=revision(4), priority=9).model_copy(update={"earlier": [revision(n) for n in (3, 2)]})
    subject = evaluator(mine, published("default", stable=revision(50)))
    four, three, two = (key_of(n) for n in (4, 3, 2))

    def decide(*failed: tuple[str, bytes, int], applied: int = 0) -> Decision:
        held = ((CONFIG, "", content_of(applied)),) if applied else ()
        return subject.decide(subject.key(facts(), 2, failed=failed, applied=held))

    assert rates(decide()) == [("a", 4)]
    assert decide().withheld == ()
    assert rates(decide(four, applied=2)) == [("a", 2)], "what it applied last"
    assert rates(decide(four)) == [("a", 3)], "else what the assignment was before"
    assert rates(decide(four, three)) == [("a", 2)]
    nothing = decide(four, three, two)
    assert nothing.hashes == NOTHING.hashes, "it keeps what it has"
    for decision in (decide(four, applied=2), nothing):
        (withheld,) = decision.withheld
        assert (withheld.assignment, withheld.content_hash, withheld.reason) == ("a", content_of(4), "")


def test_other_slots_change_beside_a_failed_one() -> None:
    extra = published("extra", stable=revision(7), slot="x")
    subject = evaluator(published("a", stable=revision(4), priority=9), published("b", stable=revision(50)), extra)

    def decide(applied: bytes | None) -> Decision:
        held = ((CONFIG, "", applied),) if applied else ()
        return subject.decide(subject.key(facts(), 2, failed=(key_of(4),), applied=held))

    assert rates(decide(None)) == [("extra", 7)], "it never had anything in the slot"
    assert rates(decide(content_of(50))) == [("b", 50), ("extra", 7)], "what it keeps is part of what it is offered"
    assert rates(decide(b"nobody knows")) == [], "what it keeps cannot be offered, so nothing is"


def test_refused_assignment_keeps_its_agents() -> None:
    both = [published("a", stable=revision(1000), priority=9), published("default", stable=revision(50))]
    refused = build(resources(*both))
    assert set(refused.rejected) == {"ConfigAssignment/a"}
    first = Evaluator(refused).decide(Evaluator(refused).key(facts(), 2))
    assert first.hashes == NOTHING.hashes, "they do not fall to a lower priority"
    (withheld,) = first.withheld
    assert (withheld.assignment, withheld.content_hash) == ("a", b"")
    assert "greater than the maximum" in withheld.reason
    good = build(resources(published("a", stable=revision(4), priority=9), both[1]))
    after = Evaluator(build(resources(*both), good))
    decision = after.decide(after.key(facts(), 2))
    assert rates(decision) == [("a", 4)], "the last good revision"
    assert len(decision.withheld) == 1
    other = after.decide(after.key(facts(), 2, applied=((CONFIG, "x", b"?"),)))
    assert rates(other) == [("a", 4)]
    for_others = published("a", stable=revision(1000, selector=Selector(agent_ids=["y"])), priority=9)
    elsewhere = Evaluator(build(resources(for_others, both[1])))
    assert rates(elsewhere.decide(elsewhere.key(facts("x"), 2))) == [("default", 50)], "it was never for this one"


def test_refused_candidate_leaves_agents_on_stable() -> None:
    for threshold, told in ((5, 0), (EVERYONE, 1)):
        going = published("a", stable=revision(4), candidate=revision(1000), threshold=threshold, priority=9)
        snapshot = build(resources(going, published("default", stable=revision(50))))
        assert set(snapshot.rejected) == {"ConfigAssignment/a"}
        assert snapshot.salvaged == {"ConfigAssignment/a"}
        subject = Evaluator(snapshot)
        decision = subject.decide(subject.key(facts(), 2))
        assert (rates(decision), len(decision.withheld)) == ([("a", 4)], told)


def test_refused_assignment_affects_only_its_agents() -> None:
    prod = Selector(labels={"env": "prod"})
    both = [
        published("a", stable=revision(1000), priority=9, selector=prod).model_copy(
            update={"earlier": [revision(3, selector=prod).model_copy(update={"priority": 9})]}
        ),
        published("default", stable=revision(50)),
    ]
    subject = Evaluator(build(resources(*both)))
    (before,) = (content for a in subject.snapshot.assignments for content in a.earlier)
    assert isinstance(before, ConfigContent)
    has = ((CONFIG, "", before.content_hash),)
    assert rates(subject.decide(subject.key(facts(env="prod"), 2, applied=has))) == [("a", 3)]
    decision = subject.decide(subject.key(facts(env="prod"), 2))
    assert (rates(decision), len(decision.withheld)) == ([], 1), "who never had it is not given what is out of date"
    assert rates(subject.decide(subject.key(facts(env="dev"), 2, applied=has))) == [("default", 50)]


def test_earlier_revision_is_kept_without_a_stable_one() -> None:
    going = published("a", candidate=revision(4), threshold=0, priority=9).model_copy(
        update={"earlier": [revision(3).model_copy(update={"priority": 9})]}
    )
    subject = Evaluator(build(resources(going, published("default", stable=revision(50)))))
    (before,) = (content for a in subject.snapshot.assignments for content in a.earlier)
    assert isinstance(before, ConfigContent)
    assert rates(subject.decide(subject.key(facts(), 2))) == [("default", 50)], "as without the candidate"
    has = ((CONFIG, "", before.content_hash),)
    assert rates(subject.decide(subject.key(facts(), 2, applied=has))) == [("a", 3)]


def test_refused_stable_revision_keeps_agents_during_a_rollout() -> None:
    limit = bucket("a-1", "x")
    for threshold, expected in ((limit, []), (limit + 1, [("a", 4)])):
        going = published("a", stable=revision(1000), candidate=revision(4), threshold=threshold, priority=9)
        subject = Evaluator(build(resources(going, published("default", stable=revision(50)))))
        decision = subject.decide(subject.key(facts("x"), 2))
        assert rates(decision) == expected
        assert bool(decision.withheld) is not bool(expected), "who is on the candidate lacks nothing"


def test_applied_packages_are_no_config_for_a_slot() -> None:
    agent = package("agent", "1", ("1", {}))
    one = resources(published("a", stable=revision(1)), published("b", stable=revision(2), slot="extra"))
    assignment = Published(name="p", stable=PackageRevision(packages=[agent.pin]), rollout=None)
    held = one | filled_resources(agent) | dict([assignment_resource(PACKAGES, assignment)])
    subject = Evaluator(build(held))
    first = subject.decide(subject.key(facts(), 10))
    assert first.packages is not None
    failed = tuple((c.slot, c.content_hash, 0) for c in first.choices if c.slot == "")
    installed = ((PACKAGES, "", first.packages.content_hash),)
    decision = subject.decide(subject.key(facts(), 10, failed=failed, applied=installed))
    assert rates(decision) == [("b", 2)], "it never had anything in the other slot"
    assert decision.packages is not None


def test_earlier_revision_is_not_given_to_agents_that_never_had_it() -> None:
    linux, newer = (package("agent", v, (v, {"os.type": "linux"})) for v in ("1", "2"))
    held = filled_resources(linux) | filled_resources(newer, yanked=("agent@2",))
    stable = PackageRevision(packages=[newer.pin])
    assignment = Published(name="p", stable=stable, rollout=None, earlier=[PackageRevision(packages=[linux.pin])])
    subject = Evaluator(build(held | dict([assignment_resource(PACKAGES, assignment)])))
    assert subject.decide(subject.key(Facts("x", {}, {"os.type": "linux"}), 8)).packages is None


def test_inputs_of_a_cohort() -> None:
    subject = evaluator(published("a", stable=revision(1), selector=Selector(labels={"tier": "prod"})))
    assert subject.keys == {"tier"}
    assert not subject.uses_history(())
    assert subject.uses_history((("", b"c", 0),))
    frozen = Evaluator(subject.snapshot, frozen={"a-1"})
    assert frozen.uses_history(())


def test_decisions_are_cached() -> None:
    subject = evaluator(published("a", stable=revision(1)))
    key = subject.key(facts(), 2)
    assert subject.decide_once(key) is subject.decide_once(key)


def test_applied_contents_of_both_kinds() -> None:
    slot = OfferedSlot("", "a", b"c")
    assert applied_of([slot], [slot]) == ((CONFIG, "", b"c"), (PACKAGES, "", b"c"))


def test_earlier_revisions_must_match_the_agent() -> None:
    prod = revision(2, selector=Selector(labels={"tier": "prod"}))
    before = published("a", stable=revision(3)).model_copy(update={"stable": None, "earlier": [prod, revision(4)]})
    subject = evaluator(before)
    content = config(subject.snapshot.assignments[0].earlier[1]).content_hash
    decision = subject.decide(subject.key(facts(), 2, applied=((CONFIG, "", content),)))
    assert decision.choices[0].content_hash == content


def test_fallback_needs_an_applied_revision() -> None:
    before = published("a").model_copy(update={"earlier": [revision(3), revision(4)]})
    subject = evaluator(before)
    first = config(subject.snapshot.assignments[0].earlier[0]).content_hash
    options = list(
        subject.options(subject.snapshot.assignments[0], subject.key(facts(), 2, applied=((CONFIG, "", first),)))
    )
    assert [option.content_hash for option in options] == [first]


def test_agent_ids_and_splits() -> None:
    named = evaluator(published("a", stable=revision(), selector=Selector(agent_ids=["x"])))
    assert (set(named.agent_ids), named.is_partial) == ({"x"}, False)
    going = published("a", stable=revision(1), candidate=revision(2), threshold=BUCKETS // 2)
    assert (set(evaluator(going).agent_ids), evaluator(going).is_partial) == (set(), True)

import json
from unittest.mock import patch

from relay.policy.model import Selector
from relay.policy.published import CONFIG, Published
from relay.policy.resources import assignment_resource, keys_resource, prefetch_resource, template_resource
from relay.policy.rollout import EVERYONE
from relay.policy.snapshot import build
from tests.policy import filled
from tests.policy.published import TEMPLATE, VARIABLES, config, published, resources, revision


def test_valid_resources_compile() -> None:
    snapshot = build(resources(published("a", stable=revision(variables=True), candidate=revision(5), threshold=1)))
    assert snapshot.rejected == {}
    (assignment,) = snapshot.assignments
    assert config(assignment.stable).resolved.values == {"rate": 1, "where": "here"}
    assert b"where: here" in config(assignment.stable).render()
    assert assignment.branches
    assert snapshot.needed == set(resources(published("a")))


def test_assignments_are_ordered_by_name() -> None:
    snapshot = build(
        resources(*(published(n, stable=revision(), priority=p) for n, p in (("b", 1), ("a", 1), ("c", 9))))
    )
    assert [a.published.name for a in snapshot.assignments] == ["a", "b", "c"]


def test_bad_resource_does_not_affect_others() -> None:
    good = resources(published("good", stable=revision()))
    for bad in (
        {"ConfigAssignment/x": b"not json"},
        {"ConfigAssignment/x": b"{}"},
        {"ConfigAssignment/x": assignment_resource(CONFIG, published("y"))[1]},
        {"ConfigTemplate/x@v1": b"[]"},
        {"RegionVariables/x@1": b"{}"},
    ):
        snapshot = build({**good, **bad})
        assert set(snapshot.rejected) == set(bad)
        assert [a.published.name for a in snapshot.assignments] == ["good"]


def test_pinned_resources_must_exist_and_fit() -> None:
    for assignment, reason in (
        (published(stable=revision(renderer=99)), "renderer 99"),
        (published(stable=revision(rate=1000)), "greater than the maximum"),
        (published(stable=revision(unknown=1)), "no variable unknown"),
    ):
        snapshot = build(resources(assignment))
        assert reason in snapshot.rejected["ConfigAssignment/a"]
    held = resources(published(stable=revision(variables=True)))
    for name in list(held):
        if not name.startswith("ConfigAssignment"):
            less = {n: p for n, p in held.items() if n != name}
            assert "missing" in build(less).rejected["ConfigAssignment/a"]
    other = TEMPLATE.model_copy(update={"spec": TEMPLATE.spec.model_copy(update={"config": {"z": 1}})})
    changed = {**held, f"ConfigTemplate/{TEMPLATE.key}": template_resource(other)[1]}
    assert "does not have the digest" in build(changed).rejected["ConfigAssignment/a"]


def test_bad_unused_stable_revision_does_not_block_the_candidate() -> None:
    everyone = published(stable=revision(1000), candidate=revision(2), threshold=EVERYONE)
    (assignment,) = build(resources(everyone)).assignments
    assert assignment.stable is None
    assert assignment.branches
    assert build(resources(everyone)).rejected == {}
    some = published(stable=revision(1000), candidate=revision(2), threshold=5)
    (assignment,) = build(resources(some)).assignments
    assert (assignment.stable, len(assignment.branches)) == (None, 1)
    assert assignment.refused is not None
    assert assignment.refused.revision == some.stable


def test_assignment_of_a_later_version_keeps_its_agents() -> None:
    before = build(resources(published(stable=revision(1), selector=Selector(agent_ids=["x"]))))
    for other in ({"stable": {"novel": 1}}, {"novel": 1}, {"rollout": {"novel": 1}, "stable": {"novel": 2}}):
        newer = json.loads(resources(published(stable=revision(2), candidate=revision(3)))["ConfigAssignment/a"])
        for part, value in other.items():
            newer[part] = {**newer[part], **value} if isinstance(value, dict) else value
        held = {**resources(), "ConfigAssignment/a": json.dumps(newer).encode()}
        for previous, contents in ((None, []), (before, before.assignments[0].contents)):
            snapshot = build(held, previous)
            assert (
                "novel, which this node is too old to understand: upgrade it" in snapshot.rejected["ConfigAssignment/a"]
            )
            (assignment,) = snapshot.assignments
            assert assignment.contents == contents, "half of what it says must not be served"
            assert assignment.refused is not None
            assert assignment.refused.revision.selector == Selector()


def test_last_good_form_stays_in_force() -> None:
    before = build(resources(published(stable=revision(1))))
    after = build(resources(published(stable=revision(1000))), before)
    assert "ConfigAssignment/a" in after.rejected
    assert after.salvaged == set()
    assert [a.contents for a in after.assignments] == [a.contents for a in before.assignments]
    assert after.assignments[0].refused is not None
    garbage = build({**resources(), "ConfigAssignment/a": b"?"}, before)
    assert garbage.assignments == before.assignments
    gone = build(resources(), before)
    assert gone.assignments == ()


def test_template_with_undeclared_placeholders_is_refused() -> None:
    payload = template_resource(TEMPLATE)[1].replace(b"{{.rate}}", b"{{.typo}}")
    assert "typo" in build({"ConfigTemplate/t@v1": payload}).rejected["ConfigTemplate/t@v1"]


def test_unknown_kinds_are_ignored() -> None:
    assert build({"Novelty/x": b"?"}).rejected == {}
    assert VARIABLES.key == "local"


def test_unreadable_lists_keep_their_last_value() -> None:
    agent = filled.package("agent", "1", ("1", {}))
    good = filled.resources(agent, yanked=("agent@1",)) | dict(
        [keys_resource([b"k" * 32], {"release": "pem"}), prefetch_resource(["1" * 64])]
    )
    before = build(good)
    assert before.yanked == {"agent@1"}
    assert before.download_keys == (b"k" * 32,)
    assert before.signing_keys == {"release": "pem"}
    assert before.prefetch == {"1" * 64}
    after = build(good | {"Yanked/packages": b"{}", "Keys/packages": b"[]", "Prefetch/packages": b"x"}, before)
    assert set(after.rejected) == {"Yanked/packages", "Keys/packages", "Prefetch/packages"}
    assert (after.yanked, after.download_keys, after.prefetch) == (before.yanked, before.download_keys, frozenset())
    assert "6b6b" not in repr(after), "keys are not for logs"


def test_invalid_package_blocks_only_its_assignment() -> None:
    agent = filled.package("agent", "1", ("1", {}))
    held = filled.resources(agent) | resources(published("good", stable=revision()))
    held[f"Package/{agent.pin}"] = b"{}"
    snapshot = build(held)
    assert [(a.published.name, len(a.contents)) for a in snapshot.assignments] == [("good", 1), ("p", 0)]
    assert set(snapshot.rejected) == {f"Package/{agent.pin}", "PackageAssignment/p"}


def test_refused_assignment_still_has_its_selectors() -> None:
    (assignment,) = build(resources(published("a", stable=revision(rate=1000)))).assignments
    assert assignment.contents == []
    assert len(assignment.revisions) == 1, "one that is refused says whom it is for, too"
    packages = build(filled.resources(filled.package("agent", "1", ("1", {}))))
    assert packages.assignments[0].published.stable is not None
    assert packages.assignments[0].published.stable.slot == ""


def test_revision_of_another_kind_is_refused() -> None:
    name, payload = assignment_resource(CONFIG, published("a", stable=revision()))
    snapshot = build({**resources(), name.replace("Config", "Package"): payload})
    assert "a revision is of a different kind" in snapshot.rejected["PackageAssignment/a"]


def test_unknown_fields_are_dropped_if_the_rest_is_valid() -> None:
    name, payload = assignment_resource(CONFIG, published("a", stable=revision()))
    value = json.loads(payload)
    value["stable"]["shape"] = 1
    value["mood"] = "good"
    later = {**resources(), name: json.dumps(value).encode()}
    snapshot = build(later)
    assert name in snapshot.rejected
    value["name"] = ["x"]
    assert name in build({**later, name: json.dumps(value).encode()}).rejected


def test_assignment_without_a_good_revision_has_no_contents() -> None:
    snapshot = build(resources(published("a", stable=revision(rate=1000))))
    assert snapshot.assignments[0].contents == []


def test_bad_candidate_leaves_the_stable_revision() -> None:
    for threshold, says_so in ((1, False), (EVERYONE, True)):
        change = published("a", stable=revision(1), candidate=revision(rate=1000), threshold=threshold)
        (assignment,) = build(resources(change)).assignments
        assert config(assignment.stable).resolved.values["rate"] == 1
        assert (assignment.refused is not None) is says_so, "for some agents only, none is sure to need it"


def test_bad_earlier_revision_is_skipped() -> None:
    before = {"earlier": [revision(rate=1000), revision(rate=3)]}
    (assignment,) = build(resources(published("a", stable=revision(1)).model_copy(update=before))).assignments
    assert [config(content).resolved.values["rate"] for content in assignment.earlier] == [3]


def test_resource_invalid_without_unknown_fields_is_rejected() -> None:
    name, payload = assignment_resource(CONFIG, published("a", stable=revision()))
    later = json.dumps({**json.loads(payload), "mood": "good"}).encode()
    with patch.object(Published, "model_validate", lambda _: Published.model_validate_json(b"{}")):
        snapshot = build({**resources(), name: later})
    assert name in snapshot.rejected
    assert snapshot.assignments == ()

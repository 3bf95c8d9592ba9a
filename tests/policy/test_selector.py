from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.policy.model import Selector, canonical
from relay.policy.selector import Facts, Matcher, implies, matches


def facts(agent_id: str = "a", labels: dict[str, Any] | None = None, attributes: dict[str, Any] | None = None) -> Facts:
    return Facts(agent_id, labels or {}, attributes or {})


def test_all_terms_must_match() -> None:
    selector = Selector(labels={"tier": "prod"}, attributes={"os.type": "linux"}, agent_ids=["a", "b"])
    assert matches(selector, facts("a", {"tier": "prod"}, {"os.type": "linux"}))
    assert not matches(selector, facts("c", {"tier": "prod"}, {"os.type": "linux"}))
    assert not matches(selector, facts("a", {"tier": "dev"}, {"os.type": "linux"}))
    assert not matches(selector, facts("a", {"tier": "prod"}, {}))
    assert not matches(selector, facts("a", {}, {"os.type": "linux", "tier": "prod"})), "an attribute is no label"


def test_empty_selector_matches_every_agent() -> None:
    assert matches(Selector(), facts())


def test_values_compare_as_canonical_scalars() -> None:
    assert matches(Selector(attributes={"n": 1}), facts(attributes={"n": 1.0}))
    assert not matches(Selector(attributes={"n": 1}), facts(attributes={"n": "1"}))
    assert not matches(Selector(attributes={"n": 1}), facts(attributes={"n": True}))
    assert canonical(float("nan")) == b"NaN"


def test_one_matcher_serves_many_selectors() -> None:
    matcher = Matcher([Selector(labels={"a": 1}), Selector(agent_ids=["x"]), Selector(labels={"a": 1, "b": 2})])
    vector = matcher.vector(facts("x", {"a": 1}))
    assert [matcher.matches(i, vector) for i in range(3)] == [True, True, False]


def test_matchers_of_equal_terms_key_agents_equally() -> None:
    assert Matcher([Selector(labels={"a": 1})]).mentions == Matcher([Selector(labels={"a": 1.0})]).mentions
    assert Matcher([Selector(labels={"a": 1})]).mentions != Matcher([Selector(labels={"a": 2})]).mentions
    assert Matcher([Selector()]).mentions != Matcher([Selector(agent_ids=["x"])]).mentions


scalars = st.sampled_from(["x", "y", 1, True])
maps = st.dictionaries(st.sampled_from(["a", "b"]), scalars, max_size=2)
selectors = st.builds(
    lambda labels, attributes, ids: Selector(labels=labels, attributes=attributes, agent_ids=ids),
    maps, maps, st.lists(st.sampled_from(["p", "q"]), max_size=2, unique=True),
)  # fmt: skip


@given(selectors, selectors, st.builds(Facts, st.sampled_from(["p", "q", "r"]), maps, maps))
def test_implication_holds_for_every_agent(one: Selector, other: Selector, agent: Facts) -> None:
    if implies(one, other) and matches(one, agent):
        assert matches(other, agent)


@given(selectors)
def test_everything_implies_itself_and_the_empty_selector(one: Selector) -> None:
    assert implies(one, one)
    assert implies(one, Selector())


def test_agent_ids_of_selectors() -> None:
    assert set(Matcher([Selector(agent_ids=["a", "b"]), Selector(), Selector(agent_ids=["b"])]).agent_ids) == {"a", "b"}


def test_agent_id_that_does_not_count_matches_no_list() -> None:
    claimed = Facts("a", {}, {}, id_counts=False)
    assert not matches(Selector(agent_ids=["a"]), claimed)
    assert matches(Selector(), claimed)

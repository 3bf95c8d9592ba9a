from relay.control.rollouts.targets import Contender, Selection, Target
from relay.policy.model import Selector
from relay.policy.selector import Facts
from tests.control.rollouts.made import revision


def facts(name: str, **labels: str) -> tuple[str, Facts]:
    return "eu", Facts(name, labels, {})


AGENTS = [facts("a", tier="prod"), facts("b", tier="dev"), facts("c", tier="prod", site="x"), facts("d")]


def targets(
    mine: Contender, before: Contender | None, strategy: Selector, others: list[Contender], *also: Selector
) -> list[Target]:
    selection = Selection(mine, before, strategy, others, also)
    found = [(region, held, selection.sides(selection.matcher.vector(held))) for region, held in AGENTS]
    return [Target(region, held, *sides) for region, held, sides in found if sides is not None]


def chosen(
    candidate: Selector,
    stable: Selector | None = None,
    strategy: Selector | None = None,
    rivals: list[Selector] | None = None,
    priorities: tuple[int, int] = (0, 0),
) -> str:
    """`+`: gets it; `-`: had it; `~`: another assignment applies. Rivals have priority 5."""
    mine = Contender("m", "", priorities[0], candidate)
    before = Contender("m", "", priorities[1], stable) if stable is not None else None
    others = [Contender("r", "", 5, rival) for rival in rivals or []]
    found = targets(mine, before, strategy or Selector(), others)
    marks = ((t.facts.agent_id, t.chosen, t.had, t.falls) for t in found)
    return " ".join(f"{name}{'+' * on}{'-' * had}{'~' * falls}" for name, on, had, falls in marks)


def test_priority_is_per_revision() -> None:
    everybody, prod = Selector(), Selector(labels={"tier": "prod"})
    assert chosen(everybody, everybody, rivals=[prod]) == "b+- d+-"
    assert chosen(everybody, everybody, rivals=[prod], priorities=(9, 0)) == "a+~ b+- c+~ d+-"
    assert chosen(everybody, everybody, rivals=[prod], priorities=(0, 9)) == "a-~ b+- c-~ d+-"
    other_slot = Contender("r", "x", 9, everybody)
    assert len(targets(Contender("m", "", 0, everybody), None, everybody, [other_slot])) == 4


def test_targets_match_revision_and_strategy_but_no_rival() -> None:
    prod, site, dev = (
        Selector(labels={"tier": "prod"}),
        Selector(labels={"site": "x"}),
        Selector(labels={"tier": "dev"}),
    )
    assert chosen(Selector()) == "a+ b+ c+ d+"
    assert chosen(prod) == "a+ c+"
    assert chosen(prod, dev) == "a+ b- c+", "those that it is taken from are targets too"
    assert chosen(prod, Selector()) == "a+- b- c+- d-"
    assert chosen(Selector(), strategy=prod) == "a+ c+"
    assert chosen(prod, rivals=[site]) == "a+"
    assert chosen(Selector(), strategy=Selector(agent_ids=["d", "b"]), rivals=[dev]) == "d+"


def test_undecisive_selectors_still_distinguish_agents() -> None:
    everybody, site = Contender("m", "", 0, Selector()), Selector(labels={"site": "x"})
    assert targets(everybody, None, Selector(), [], site) == targets(everybody, None, Selector(), [])
    vectors = [Selection(everybody, None, Selector(), [], [site]).matcher.vector(held) for _, held in AGENTS]
    assert [vectors.count(vector) for vector in vectors] == [3, 3, 1, 3]


def test_claim_of_a_revision() -> None:
    assert Contender.of("a", revision(1, tier="prod")) == Contender("a", "", 0, Selector(labels={"tier": "prod"}))

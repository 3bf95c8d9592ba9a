from relay.control.rollouts.targets import select
from relay.policy.model import Selector
from relay.policy.selector import Facts


def facts(name: str, **labels: str) -> tuple[str, Facts]:
    return "eu", Facts(name, labels, {})


AGENTS = [facts("a", tier="prod"), facts("b", tier="dev"), facts("c", tier="prod", site="x"), facts("d")]


def chosen(
    candidate: Selector,
    stable: Selector | None = None,
    strategy: Selector | None = None,
    rivals: list[Selector] | None = None,
) -> str:
    found = select(AGENTS, candidate, stable, strategy or Selector(), rivals or [])
    return " ".join(f"{t.agent_id}{'+' if t.chosen else ''}{'-' if t.had else ''}" for t in found)


def test_targets_match_a_revision_and_the_strategy_and_no_rival() -> None:
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

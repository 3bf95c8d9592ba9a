from relay.control.rollouts.targets import select
from relay.policy.model import Selector
from relay.policy.selector import Facts


def facts(name: str, **labels: str) -> tuple[str, Facts]:
    return "eu", Facts(name, labels, {})


AGENTS = [facts("a", tier="prod"), facts("b", tier="dev"), facts("c", tier="prod", site="x"), facts("d")]


def chosen(own: list[Selector], strategy: Selector | None = None, rivals: list[Selector] | None = None) -> str:
    return "".join(name for _, name in select(AGENTS, own, strategy or Selector(), rivals or []))


def test_targets_match_a_revision_and_the_strategy_and_no_rival() -> None:
    prod, site, dev = (
        Selector(labels={"tier": "prod"}),
        Selector(labels={"site": "x"}),
        Selector(labels={"tier": "dev"}),
    )
    assert chosen([Selector()]) == "abcd"
    assert chosen([prod]) == "ac"
    assert chosen([prod, dev]) == "abc", "those that it is taken from are targets too"
    assert chosen([Selector()], prod) == "ac"
    assert chosen([prod], rivals=[site]) == "a"
    assert chosen([Selector()], Selector(agent_ids=["d", "b"]), [dev]) == "d"

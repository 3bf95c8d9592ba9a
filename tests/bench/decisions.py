"""The cost of decisions alone, in this process: planning a stage and evaluating a policy."""

from __future__ import annotations

import time

from relay.control.rollouts import plan
from relay.control.rollouts.targets import Contender, Selection
from relay.policy.evaluate import Evaluator
from relay.policy.model import Selector
from relay.policy.selector import Facts
from relay.policy.snapshot import build
from tests.control.rollouts.made import strategy
from tests.policy.published import published, resources, revision

_AGENTS = 100_000
_ASSIGNMENTS = 1_000


def plan_seconds() -> float:
    """Time to choose the targets of a rollout among all agents, and the threshold of its first stage."""
    agents = [
        ("eu" if i % 2 else "us", Facts(f"agent-{i}", {"tier": "prod" if i % 3 else "dev", "zone": str(i % 50)}, {}))
        for i in range(_AGENTS)
    ]
    own = Contender("a", "", 0, Selector(labels={"tier": "prod"}))
    rivals = [Contender("b", "", 1, Selector(labels={"zone": str(zone)})) for zone in range(5)]
    began = time.perf_counter()
    selection = Selection(own, own, Selector(), rivals)
    vectors = ((region, facts, selection.matcher.vector(facts)) for region, facts in agents)
    goals = [(region, facts.agent_id) for region, facts, vector in vectors if selection.sides(vector)]
    plan.thresholds("a-2", strategy(), 0, goals, {})
    return time.perf_counter() - began


def evaluation_seconds() -> float:
    """Time to decide for a new agent, with a policy of a thousand assignments."""
    assignments = [
        published(f"a{i}", stable=revision(1), priority=i, selector=Selector(labels={"tier": f"t{i}"}))
        for i in range(_ASSIGNMENTS)
    ]
    evaluator = Evaluator(build(resources(*assignments)))
    facts = Facts("x", {"tier": "t7"}, {})
    rounds = 200
    began = time.perf_counter()
    for _ in range(rounds):
        evaluator.decide(evaluator.key(facts, 2))
    return (time.perf_counter() - began) / rounds

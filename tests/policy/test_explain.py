from __future__ import annotations

from typing import Any

from relay.policy import explain
from relay.policy.evaluate import Evaluator
from relay.policy.model import Selector
from relay.policy.rollout import BUCKETS, EVERYONE, bucket
from relay.policy.selector import Facts
from relay.policy.snapshot import Published, build
from tests.policy.published import config, published, resources, revision

PROD = Selector(labels={"tier": "prod"}, attributes={"os.type": "linux"})


def explained(*assignments: Published, failed: Any = (), held: Any = (), **more: Any) -> list[dict[str, Any]]:
    facts = Facts("x", {"tier": "prod"}, {"os.type": "linux"})
    evaluator = Evaluator(build(resources(*assignments)), **more)
    return explain.explain(evaluator, facts, 2, failed=failed, held=held)[0]


def test_the_winner_and_why_the_others_lost() -> None:
    (slot,) = explained(
        published("win", stable=revision(5, where="here"), priority=9, selector=PROD),
        published("low", stable=revision()),
        published("dev", stable=revision(), priority=99, selector=Selector(labels={"tier": "dev", "zone": "a"})),
        published("named", stable=revision(), priority=99, selector=Selector(agent_ids=["y"])),
        published("zzz", stable=revision(), priority=9),
    )
    assert (slot["assignment"], slot["revision"], slot["bucket"], slot["rollout"]) == ("win", "stable", None, None)
    assert slot["reasons"] == [
        "label tier = prod matches",
        "attribute os.type = linux matches",
        "priority 9 is the highest of those that can be given",
    ]
    assert slot["values"]["rate"] == {"value": 5, "from": "assignment"}
    why = {r["assignment"]: r["reason"] for r in slot["rejected"]}
    assert why == {
        "dev": "label tier is prod, must be dev; label zone is not there, must be a",
        "named": "agent id x is not one of the 1 that are named",
        "zzz": "ConfigAssignment win has the same priority 9 and comes first by name",
        "low": "ConfigAssignment win has priority 9, this one 0",
    }
    text = "\n".join(explain.lines([slot]))
    assert "rate = 5 (from assignment)" in text
    assert "not low: ConfigAssignment win has priority 9" in text


def share(number: int) -> str:
    return f"{100 * number / BUCKETS:.4f} %"


def test_sides_of_a_rollout() -> None:
    mine = bucket("a-1", "x")
    both: dict[str, Any] = {"stable": revision(1), "candidate": revision(2)}
    (on,) = explained(published(threshold=mine + 1, stage="canary", **both))
    assert (on["revision"], on["bucket"], on["threshold"], on["rollout"]) == ("candidate", mine, mine + 1, "a-1")
    assert (
        on["reasons"][-1]
        == f"bucket {share(mine)} is within the threshold {share(mine + 1)} of rollout a-1 in stage canary"
    )
    (off,) = explained(published(threshold=mine, **both))
    assert (off["revision"], off["rollout"]) == ("stable", "a-1")
    assert "is beyond the threshold" in off["reasons"][-1]
    (everybody,) = explained(published(threshold=EVERYONE, **both))
    assert everybody["reasons"][-1] == "rollout a-1 is for everybody"
    (halted,) = explained(published(threshold=EVERYONE, **both), halted={"a-1"})
    assert "halted in this region" in halted["reasons"][-1]
    (frozen,) = explained(published(threshold=EVERYONE, **both), frozen={"a-1"})
    assert "candidate_ttl" in frozen["reasons"][-1]
    limited = published(threshold=EVERYONE, selector=None, **both)
    assert limited.rollout is not None
    named = limited.rollout.model_copy(update={"selector": Selector(labels={"tier": "dev"})})
    (other,) = explained(limited.model_copy(update={"rollout": named}))
    assert other["reasons"][-1] == "rollout a-1 is not for this agent yet: label tier is prod, must be dev"


def test_what_failed_before() -> None:
    both = published(threshold=EVERYONE, stable=revision(1), candidate=revision(2))
    snapshot = build(resources(both))
    failed = (("", config(snapshot.assignments[0].branches[0][1]).content_hash, 0),)
    (slot,) = explained(both, failed=failed)
    assert slot["revision"] == "stable"
    assert "failed at the candidate of a-1 before" in slot["reasons"][-1]
    only = published("only", stable=revision(2))
    (none,) = explained(only, failed=failed)
    assert (none["assignment"], none["revision"]) == (None, "none")
    assert none["rejected"][0]["reason"].startswith("the agent failed at it before")
    assert explain.lines([none])[0] == "slot (default): nothing"


def test_an_assignment_that_is_taken_from_the_agent() -> None:
    elsewhere = revision(1, selector=Selector(labels={"tier": "dev"}))
    leaving = published(stable=revision(1, selector=PROD), candidate=elsewhere, threshold=EVERYONE)
    (slot,) = explained(leaving)
    assert slot["rejected"][0]["reason"] == "label tier is prod, must be dev"

from __future__ import annotations

from typing import Any

from relay.policy import explain
from relay.policy.evaluate import Evaluator
from relay.policy.model import Selector
from relay.policy.published import Published
from relay.policy.rollout import BUCKETS, EVERYONE, bucket
from relay.policy.selector import Facts
from relay.policy.snapshot import build
from tests.policy import filled
from tests.policy.filled import package
from tests.policy.published import config, published, resources, revision

PROD = Selector(labels={"tier": "prod"}, attributes={"os.type": "linux"})


def explained(*assignments: Published, failed: Any = (), held: Any = (), **more: Any) -> list[dict[str, Any]]:
    facts = Facts("x", {"tier": "prod"}, {"os.type": "linux"})
    evaluator = Evaluator(build(resources(*assignments)), **more)
    return explain.explain(evaluator, facts, 2, failed=failed, held=held)[0]


def test_winner_and_why_others_lost() -> None:
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
        "priority 9 is the highest",
    ]
    assert slot["values"]["rate"] == {"value": 5, "from": "assignment"}
    why = {r["assignment"]: r["reason"] for r in slot["rejected"]}
    assert why == {
        "dev": "label tier is prod, must be dev; label zone is not set, must be a",
        "named": "agent id x is not one of the 1 listed",
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
    assert everybody["reasons"][-1] == "rollout a-1 includes every agent"
    (halted,) = explained(published(threshold=EVERYONE, **both), halted={"a-1"})
    assert "halted in this region" in halted["reasons"][-1]
    (frozen,) = explained(published(threshold=EVERYONE, **both), frozen={"a-1"})
    assert "candidate_ttl" in frozen["reasons"][-1]
    limited = published(threshold=EVERYONE, selector=None, **both)
    assert limited.rollout is not None
    named = limited.rollout.model_copy(update={"selector": Selector(labels={"tier": "dev"})})
    (other,) = explained(limited.model_copy(update={"rollout": named}))
    assert other["reasons"][-1] == "rollout a-1 does not include this agent yet: label tier is prod, must be dev"


def test_earlier_failure() -> None:
    both = published(threshold=EVERYONE, stable=revision(1), candidate=revision(2))
    snapshot = build(resources(both))
    failed = (("", config(snapshot.assignments[0].branches[0][1]).content_hash, 0),)
    (slot,) = explained(both, failed=failed)
    assert slot["revision"] == "stable"
    assert "failed to apply the candidate of a-1 before" in slot["reasons"][-1]
    only = published("only", stable=revision(2))
    (none,) = explained(only, failed=failed)
    assert (none["assignment"], none["revision"], none["rejected"]) == ("only", "none", [])
    assert none["reasons"] == [
        "ConfigAssignment only matches every agent",
        "the agent failed to apply it before; `opampctl rollout retry` clears the failure: it keeps what it has",
    ]
    assert explain.lines([none])[0] == "slot (default): only, no revision"
    fallback = published("a", stable=revision(2)).model_copy(update={"earlier": [revision(1)]})
    (before,) = explained(fallback, published("low", stable=revision(9), priority=-1), failed=failed)
    assert before["reasons"][-1].endswith("clears the failure: it gets the assignment's previous revision")
    assert before["rejected"] == [{"assignment": "low", "reason": "ConfigAssignment a has priority 0, this one -1"}]


def test_revision_refused_in_this_region() -> None:
    (slot,) = explained(published("a", stable=revision(1000), priority=3), published("low", stable=revision(9)))
    assert (slot["assignment"], slot["revision"]) == ("a", "none")
    assert slot["reasons"][-1].startswith(
        "its newest revision is rejected here (rate: 1000 is greater than the maximum, 100)"
    )
    assert slot["rejected"] == [{"assignment": "low", "reason": "ConfigAssignment a has priority 3, this one 0"}]


def test_assignment_taken_from_the_agent() -> None:
    elsewhere = revision(1, selector=Selector(labels={"tier": "dev"}))
    leaving = published(stable=revision(1, selector=PROD), candidate=elsewhere, threshold=EVERYONE)
    (slot,) = explained(leaving)
    assert slot["rejected"][0]["reason"] == "label tier is prod, must be dev"


def explained_packages(held: dict[str, bytes], *, failed: Any = (), os: str = "linux") -> dict[str, Any]:
    evaluator = Evaluator(build(held))
    _, packages = explain.explain(evaluator, Facts("x", {}, {"os.type": os}), 8, failed=failed)
    assert packages is not None
    return packages


def test_chosen_packages_and_rejected_ones() -> None:
    linux, windows = (
        package("agent", "1", (digit, {"os.type": os})) for digit, os in (("1", "linux"), ("2", "windows"))
    )
    both = filled.resources(linux, name="l") | filled.resources(windows, name="w", priority=3)
    found = explained_packages(both)
    assert (found["assignment"], found["packages"]) == ("l", {"agent": {"version": "1", "sha256": "1" * 64}})
    assert found["rejected"] == [{"assignment": "w", "reason": "package agent@1 has no file for this agent"}]
    told = explain.lines([], found)
    assert told[0] == "packages: l, stable revision"
    assert f"    agent 1 (sha256 {'1' * 12})" in told
    nothing = explained_packages(filled.resources(linux), os="plan9")
    assert (nothing["assignment"], nothing["packages_hash"]) == (None, "")
    yanked = explained_packages(filled.resources(linux, yanked=("agent@1",)))
    assert yanked["rejected"][0]["reason"] == "package agent@1 was yanked"
    lower = explained_packages(filled.resources(linux, name="a") | filled.resources(linux, name="b", priority=-1))
    assert lower["rejected"][0]["reason"] == "PackageAssignment a has priority 0, this one -1"
    assert explain.explain(Evaluator(build(resources())), Facts("x", {}, {}), 8)[1] is None


def test_assignment_that_moves_to_another_slot() -> None:
    going = published(threshold=EVERYONE, stable=revision(1), candidate=revision(2))
    assert going.rollout is not None
    moved = going.rollout.candidate.model_copy(update={"slot": "y"})
    there, here = explained(going.model_copy(update={"rollout": going.rollout.model_copy(update={"candidate": moved})}))
    assert (there["slot"], there["assignment"], here["slot"], here["assignment"]) == ("", None, "y", "a")
    assert there["rejected"] == [{"assignment": "a", "reason": "it fills slot y instead"}]


def test_unavailable_packages_have_a_reason() -> None:
    def rejected(agent: Facts, **more: Any) -> str:
        held = filled.filled(package("a", "1", ("1", filled.LINUX)), package("b", "1", ("2", {})), **more)
        _, packages = explain.explain(Evaluator(held), agent, 2)
        return str(packages)

    linux, windows = (Facts("x", {}, attributes) for attributes in (filled.LINUX, filled.WINDOWS))
    assert "package a@1 has no file for this agent" in rejected(windows)
    assert "package b@1 was yanked" in rejected(linux, yanked=("b@1",))


def test_rollout_without_agents() -> None:
    (slot,) = explained(published("a", candidate=revision(2), threshold=0), published("b", stable=revision(1)))
    (reason,) = (r["reason"] for r in slot["rejected"] if r["assignment"] == "a")
    assert "a-1" in reason

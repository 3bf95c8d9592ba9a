import dataclasses
from typing import Any

import pytest

from relay.control.rollouts.counts import Counts, RegionView, Verdict
from relay.control.rollouts.gates import Case, Subject, count, judge, most_silent_ms, trouble
from relay.opamp.offer import Failure, OfferedSlot
from relay.opamp.offering import Offering
from tests.control.rollouts.made import rollout, strategy

NOW = 1_000_000
CANDIDATE, OTHER = b"c" * 32, b"o" * 32
OFFER = (OfferedSlot("", "a", CANDIDATE),)
HAD = (OfferedSlot("", "a", OTHER),)


class Agent:
    """An agent as gates see it, and its offer."""

    def __init__(self, **more: Any) -> None:
        self.connected = True
        self.healthy: bool | None = True
        self.offering = offering = Offering()
        offering.slots = more.pop("offers", OFFER)
        offering.baseline = (more.pop("healthy_before", True),) * len(offering.slots)
        offering.offered_at_ms = NOW
        offering.applied = more.pop("applied", ())
        offering.status = more.pop("status", "")
        offering.failures = more.pop("failed", ())
        vars(self).update(more)


def case(candidate: bytes | None = CANDIDATE, stable: bytes | None = OTHER, **more: Any) -> Case:
    values: dict[str, Any] = {"on_candidate": True, "falls": False, "reports_status": True, "retry": 0}
    return Case(
        rollout(spec=strategy(max_silent="10m"), stage_started_ms=NOW),
        ("", candidate) if candidate is not None else None,
        ("", stable) if stable is not None else None,
        **{**values, **more},
    )


_OF_CASE = frozenset(f.name for f in dataclasses.fields(Case))


def counted(*, on: bool = True, **more: Any) -> Counts:
    agent = Agent(**{k: v for k, v in more.items() if k not in _OF_CASE})
    of_case = {k: v for k, v in more.items() if k in _OF_CASE}
    return count(Subject(agent.connected, agent.healthy), agent.offering, case(on_candidate=on, **of_case))


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ({}, {"targets": 1, "offered": 1, "undecided": 1, "holding": 1}),
        ({"offer_is_late": True}, {"targets": 1, "offered": 1, "silent": 1, "holding": 1}),
        ({"status": "APPLYING", "offer_is_late": True}, {"targets": 1, "offered": 1, "silent": 1, "holding": 1}),
        ({"offers": ()}, {"targets": 1, "undecided": 1}),
        ({"offers": (), "stage_is_late": True}, {"targets": 1, "silent": 1}),
        ({"offers": (), "connected": False}, {"targets": 1}),
        ({"reports_status": False}, {"targets": 1, "offered": 1, "holding": 1}),
        ({"status": "APPLIED"}, {"targets": 1, "offered": 1, "applied": 1, "reporting": 1, "holding": 1}),
        ({"status": "APPLIED", "healthy": None}, {"targets": 1, "offered": 1, "applied": 1, "holding": 1}),
        (
            {"status": "APPLIED", "healthy": False},
            {"targets": 1, "offered": 1, "applied": 1, "reporting": 1, "unhealthy": 1, "holding": 1},
        ),
        (
            {"status": "APPLIED", "healthy": False, "is_lasting": True},
            {"targets": 1, "offered": 1, "applied": 1, "reporting": 1, "unhealthy": 1, "lasting": 1, "holding": 1},
        ),
        (
            {"status": "APPLIED", "healthy": False, "healthy_before": False},
            {"targets": 1, "offered": 1, "applied": 1, "holding": 1},
        ),
        ({"status": "APPLIED", "connected": False}, {"targets": 1, "offered": 1, "silent": 1}),
        ({"stable": CANDIDATE}, {"targets": 1, "offered": 1, "undecided": 1}),
        ({"stable": None, "status": "APPLIED"}, {"targets": 1, "offered": 1, "applied": 1, "reporting": 1}),
        ({"candidate": None}, {"targets": 1, "offered": 1, "applied": 1}),
        ({"candidate": None, "connected": False}, {"targets": 1, "offered": 1, "silent": 1}),
        ({"candidate": None, "on": False}, {}),
        ({"candidate": None, "falls": True, "offers": HAD}, {"targets": 1, "undecided": 1}),
        ({"candidate": None, "falls": True, "offers": HAD, "stage_is_late": True}, {"targets": 1, "silent": 1}),
        ({"candidate": None, "falls": True, "status": "FAILED"}, {"targets": 1, "offered": 1, "failed": 1}),
        (
            {"candidate": None, "falls": True, "status": "APPLIED", "healthy": False},
            {"targets": 1, "offered": 1, "applied": 1, "reporting": 1, "unhealthy": 1},
        ),
        (
            {"candidate": None, "falls": True, "status": "APPLIED", "healthy": False, "healthy_before": False},
            {"targets": 1, "offered": 1, "applied": 1},
        ),
        ({"stage_is_late": True}, {"targets": 1, "offered": 1, "undecided": 1, "holding": 1}),
        ({"failed": (Failure("", OTHER, 0, "no", 1),), "on": False, "applied": OFFER}, {}),
        (
            {"status": "APPLIED", "healthy_before": False},
            {"targets": 1, "offered": 1, "applied": 1, "reporting": 1, "holding": 1},
        ),
        ({"on": False}, {"holding": 1}),
        ({"on": False, "offers": (), "applied": OFFER}, {"holding": 1}),
        ({"on": False, "offers": (), "applied": OFFER, "connected": False}, {}),
    ],
)
def test_count_of_one_agent(agent: dict[str, Any], expected: dict[str, int]) -> None:
    assert counted(**agent) == Counts(**expected)


def test_failure_counts_until_forgiven() -> None:
    back: dict[str, Any] = {"offers": (OfferedSlot("", "a", OTHER),), "status": "APPLIED"}
    failed = (Failure("", CANDIDATE, 0, "no", NOW),)
    assert counted(failed=failed, **back) == Counts(targets=1, offered=1, failed=1)
    assert counted(failed=failed, retry=1, **back) == Counts(targets=1, undecided=1)


PASS_RATE = {"health_check_pass_rate": 0.9}
CRITERIA = {"error_rate_threshold": 0.1, "health_check_pass_rate": 0.9}


def judged(
    observed_s: float = 10, connected: bool = True, spec: dict[str, Any] | None = None, **numbers: Any
) -> tuple[Verdict, str]:
    stage = {"name": "one", "percentage": 50, "duration": "10s", "success_criteria": CRITERIA}
    stage |= numbers.pop("stage", {})
    going = rollout(spec=strategy(stages=[stage], **(spec or {})), observed_s=observed_s)
    going = dataclasses.replace(going, at_once=numbers.pop("at_once", False))
    view = RegionView(
        Counts(**{k: v for k, v in numbers.items() if k not in ("current", "halted", "refused", "catching_up")}),
        connected=connected,
        catching_up=numbers.get("catching_up", False),
        current=numbers.get("current", True),
        halted=numbers.get("halted", ""),
        refused=numbers.get("refused", ""),
    )
    gate = judge(going, {"eu": view})
    return gate.verdict, gate.reason


@pytest.mark.parametrize(
    ("numbers", "verdict", "reason"),
    [
        ({"targets": 10, "applied": 10, "reporting": 10}, Verdict.PASS, "10 of 10 applied, 0 failed"),
        ({"targets": 10, "applied": 8, "reporting": 8}, Verdict.PASS, "2 away or silent"),
        ({"targets": 10, "applied": 10, "reporting": 10, "observed_s": 9.999}, Verdict.WAITING, "1s of 10s left"),
        ({"targets": 10, "applied": 10, "reporting": 10, "observed_s": 0}, Verdict.WAITING, "10s of 10s left"),
        ({"targets": 10, "applied": 8, "reporting": 8, "undecided": 2}, Verdict.WAITING, "2 of 10 agents have not"),
        ({"targets": 10, "applied": 4, "reporting": 4}, Verdict.HOLD, "too few samples: 4 agents answered, 5 needed"),
        ({"targets": 3, "applied": 2, "reporting": 2}, Verdict.HOLD, "too few samples: 2 agents answered, 3 needed"),
        ({"targets": 10, "applied": 8, "silent": 2, "reporting": 8}, Verdict.HOLD, "2 of 10 agents are silent"),
        ({"targets": 10, "applied": 10}, Verdict.HOLD, "only 0 of 10 agents on the candidate report their health"),
        ({"targets": 20, "applied": 20, "reporting": 4, "unhealthy": 4}, Verdict.HOLD, "only 4 of 20"),
        (
            {"targets": 10, "applied": 5, "silent": 5, "reporting": 5, "stage": {"success_criteria": PASS_RATE}},
            Verdict.HOLD,
            "5 of 10 agents are silent",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "refused": "no value"},
            Verdict.HOLD,
            "cannot apply it: no value",
        ),
        ({}, Verdict.HOLD, "matches no known agent"),
        (
            {"targets": 20, "applied": 4, "failed": 1, "reporting": 4},
            Verdict.FAIL,
            "1 of 5 agents that answered failed",
        ),
        ({"targets": 20, "applied": 2, "failed": 1, "undecided": 17}, Verdict.WAITING, "17 of"),
        ({"targets": 20, "failed": 3}, Verdict.FAIL, "3 of 3 agents"),
        ({"targets": 1, "failed": 1}, Verdict.FAIL, "1 of 1 agents"),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "unhealthy": 2},
            Verdict.FAIL,
            "2 of 10 agents on the candidate",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "unhealthy": 2, "observed_s": 5},
            Verdict.WAITING,
            "5s of 10s left",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "unhealthy": 2, "lasting": 2, "observed_s": 5},
            Verdict.FAIL,
            "unhealthy",
        ),
        ({"targets": 10, "applied": 10, "reporting": 10, "unhealthy": 1}, Verdict.PASS, ""),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "connected": False},
            Verdict.HOLD,
            "region eu is offline",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "connected": False, "catching_up": True},
            Verdict.HOLD,
            "region eu is being updated",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "connected": False, "spec": {"on_missing": "exclude"}},
            Verdict.HOLD,
            "matches no known agent",
        ),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "current": False},
            Verdict.WAITING,
            "has not applied the policy yet",
        ),
        ({"targets": 10, "applied": 10, "halted": "3 failed"}, Verdict.FAIL, "eu rolled back on its own: 3 failed"),
        (
            {"targets": 10, "applied": 10, "reporting": 10, "stage": {"manual": True}},
            Verdict.WAITING,
            "manual promotion",
        ),
        (
            {"targets": 20, "applied": 10, "reporting": 9, "spec": {"min_samples": 11}},
            Verdict.HOLD,
            "10 agents answered, 11 needed",
        ),
        ({"targets": 10, "applied": 5, "failed": 5, "stage": {"success_criteria": {}}}, Verdict.PASS, "5 failed"),
    ],
)
def test_gate_verdicts(numbers: dict[str, Any], verdict: Verdict, reason: str) -> None:
    said = judged(**numbers)
    assert (said[0], reason in said[1]) == (verdict, True), said


def test_all_regions_count_together() -> None:
    stages = [{"name": "one", "percentage": 50, "success_criteria": {"error_rate_threshold": 0.2}}]
    going = rollout(spec=strategy(stages=stages))
    good = RegionView(Counts(targets=8, applied=8))
    bad = RegionView(Counts(targets=2, failed=2))
    assert judge(going, {"eu": good, "us": bad}).verdict is Verdict.PASS
    assert judge(going, {"us": bad}).verdict is Verdict.FAIL
    excluded = dataclasses.replace(bad, connected=False)
    missing = rollout(spec=strategy(on_missing="exclude", stages=stages))
    waits = judge(missing, {"eu": good, "us": excluded})
    assert (waits.verdict, "cannot end: region us" in waits.reason) == (Verdict.HOLD, True)
    stages.append({"name": "two", "percentage": 60})
    earlier = rollout(spec=strategy(on_missing="exclude", stages=stages))
    assert judge(earlier, {"eu": good, "us": excluded}).verdict is Verdict.PASS


def test_trouble() -> None:
    def said(counts: Counts, **more: Any) -> tuple[str, str] | None:
        agent = Agent(**more)
        return trouble("sick", agent.offering, case(), counts)

    failure = Failure("", CANDIDATE, 0, "no such thing", NOW)
    assert said(Counts(failed=1), failed=(failure,)) == ("failed", "no such thing")
    assert said(Counts(failed=1)) == ("failed", "")
    assert said(Counts(unhealthy=1)) == ("unhealthy", "sick")
    assert said(Counts(silent=1)) == ("silent", "")
    assert said(Counts(applied=1)) is None


def test_max_silent_time() -> None:
    assert most_silent_ms(rollout(spec=strategy(max_silent="10m"))) == 600_000


def test_thresholds_are_exact() -> None:
    whole = {"name": "one", "percentage": 50, "success_criteria": {"error_rate_threshold": 0.29}}
    assert judged(targets=100, applied=71, failed=29, reporting=71, stage=whole)[0] is Verdict.PASS
    assert judged(targets=100, applied=70, failed=30, reporting=70, stage=whole)[0] is Verdict.FAIL
    healthy = {"name": "one", "percentage": 50, "success_criteria": {"health_check_pass_rate": 0.9}}
    assert judged(targets=100, applied=90, silent=10, reporting=90, stage=healthy)[0] is Verdict.PASS


def test_required_samples() -> None:
    verdict, reason = judged(targets=2, applied=2, reporting=2, spec={"min_samples": 10})
    assert (verdict, reason) == (Verdict.HOLD, "too few samples: 2 agents answered, 10 needed")


@pytest.mark.parametrize(
    ("numbers", "verdict", "reason"),
    [
        ({"targets": 10, "applied": 10}, Verdict.PASS, "10 of 10 applied, 0 failed"),
        ({"targets": 10, "applied": 9, "silent": 1}, Verdict.PASS, "1 away or silent"),
        ({"targets": 10, "silent": 10}, Verdict.WAITING, "none of the 10 agents has answered"),
        ({"targets": 10, "applied": 9, "undecided": 1}, Verdict.WAITING, "1 of 10 agents have not answered yet"),
        ({"targets": 10, "applied": 9, "failed": 1}, Verdict.PASS, "1 failed"),
        ({"targets": 10, "applied": 8, "failed": 2}, Verdict.FAIL, "2 of 10 agents failed, more than 10.00%"),
        ({"targets": 10, "failed": 1, "undecided": 9}, Verdict.WAITING, "not answered yet"),
        ({"targets": 10, "failed": 2, "undecided": 8}, Verdict.FAIL, "2 of 10"),
        ({"targets": 4, "failed": 4}, Verdict.PASS, "0 of 4 applied, 4 failed"),
        ({"targets": 20, "failed": 3, "silent": 17}, Verdict.FAIL, "3 of 20"),
        ({"targets": 40, "failed": 3, "applied": 3}, Verdict.FAIL, "3 of 6"),
        ({"targets": 10, "applied": 10, "connected": False}, Verdict.WAITING, "is offline"),
        ({"targets": 10, "applied": 10, "current": False}, Verdict.WAITING, "has not applied the policy yet"),
        ({"targets": 10, "applied": 10, "current": False, "refused": "no"}, Verdict.PASS, ""),
        (
            {"targets": 10, "failed": 10, "stage": {"success_criteria": {}}},
            Verdict.PASS,
            "0 of 10 applied, 10 failed",
        ),
    ],
)
def test_gate_without_a_strategy(numbers: dict[str, Any], verdict: Verdict, reason: str) -> None:
    stage = {"success_criteria": {"error_rate_threshold": 0.1}, **numbers.pop("stage", {})}
    said = judged(at_once=True, observed_s=0, spec={"min_samples": 5}, stage=stage, **numbers)
    assert (said[0], reason in said[1]) == (verdict, True), said


def test_absent_agents_count_as_silent_at_the_last_stage() -> None:
    assert counted(connected=False, offers=(), is_last=False) == Counts(targets=1)
    assert counted(connected=False, offers=(), is_last=True) == Counts(targets=1, silent=1)

"""Gates: whether a stage may end. The verdict needs reports from agents; no data never passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relay.control.rollouts.contents import Given
from relay.control.rollouts.counts import Counts, Gate, RegionView, Trouble, Verdict
from relay.control.rollouts.rollout import Rollout
from relay.opamp.offer import OfferedSlot
from relay.opamp.offering import APPLIED, FAILED, Offering
from relay.policy.strategy import SuccessCriteria

_DEFAULT_SAMPLES = 5
_EPSILON = 1e-9
"""Tolerance for rounding errors."""
LASTING_MS = 60_000
"""Agents are often unhealthy for a moment when they start with a new config. Until a stage's time is up, only lasting
trouble counts."""


class Subject(NamedTuple):
    """The state of an agent that gates look at."""

    connected: bool
    """It has a session at a node that is not gone."""
    healthy: bool | None
    """Its reported health; None if it reports none."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a rollout means for one of its targets."""

    rollout: Rollout
    candidate: Given | None
    """What the agent gets; None if it loses the assignment."""
    stable: Given | None
    """What it had before; None if nothing."""
    on_candidate: bool
    """Its bucket is below its region's threshold."""
    falls: bool
    """If it loses the assignment: another assignment gives it something."""
    reports_status: bool
    """It reports the outcome of offers."""
    retry: int
    """Failures of an earlier retry generation are forgiven."""
    stage_is_late: bool = False
    """The stage has lasted longer than agents may be silent."""
    offer_is_late: bool = False
    """The last offer to the agent is older than that."""
    is_lasting: bool = False
    """The state of the agent has not changed for a while."""
    is_last: bool = False
    """This is the last stage: absent agents are no longer waited for, and count as silent."""

    def failures(self, offering: Offering) -> set[Given]:
        """Contents that the agent could not apply, without forgiven failures."""
        return {(f.slot, f.content_hash) for f in offering.failures if f.retry >= self.retry and not f.forgiven}

    def is_in(self, slots: Iterable[OfferedSlot], given: Given | None) -> bool:
        """Whether the slots have this content from the rollout's assignment."""
        return any(s.assignment == self.rollout.assignment and (s.slot, s.content_hash) == given for s in slots)


def count(subject: Subject, offering: Offering, case: Case) -> Counts:
    """Count one target of a rollout.

    Args:
        offering: its last offer of the rollout's kind.
    """
    if case.candidate is None:
        return _count_removal(subject, offering, case) if case.on_candidate else Counts()
    failures = case.failures(offering)
    failed = case.candidate in failures
    offered = case.is_in(offering.slots, case.candidate)
    runs = case.is_in(offering.applied, case.candidate)
    can_go_back = case.stable is not None and case.stable != case.candidate and case.stable not in failures
    holding = int(can_go_back and subject.connected and (runs or (offered and not failed)))
    if not case.on_candidate:
        return Counts(holding=holding)
    if failed:
        return Counts(targets=1, offered=1, failed=1, holding=holding)
    if not offered:
        # The stage has just reached it, or it is away, or its node withholds the candidate.
        if not subject.connected:
            return Counts(targets=1, silent=int(case.is_last))
        return Counts(targets=1, undecided=int(not case.stage_is_late), silent=int(case.stage_is_late))
    before = next((health for slot, health in zip(offering.slots, offering.baseline, strict=True)
                   if (slot.slot, slot.content_hash) == case.candidate), None)  # fmt: skip
    return _count_offered(subject, offering, case, before, holding)


def _count_removal(subject: Subject, offering: Offering, case: Case) -> Counts:
    if not case.falls:
        # It keeps what it has: there is no offer to answer.
        return Counts(targets=1, offered=1, applied=int(subject.connected), silent=int(not subject.connected))
    if case.is_in(offering.slots, case.stable):
        late = case.stage_is_late
        return Counts(targets=1, undecided=int(subject.connected and not late), silent=int(subject.connected and late))
    if offering.status == FAILED:
        return Counts(targets=1, offered=1, failed=1)
    was_ill = bool(offering.baseline) and all(health is False for health in offering.baseline)
    return _count_offered(subject, offering, case, False if was_ill else None, 0)


def _count_offered(subject: Subject, offering: Offering, case: Case, before: bool | None, holding: int) -> Counts:
    """Count an agent that was offered what the rollout gives it."""
    if not case.reports_status:
        return Counts(targets=1, offered=1, holding=holding)
    if offering.status != APPLIED:
        late = case.offer_is_late
        return Counts(targets=1, offered=1, silent=int(late), undecided=int(not late), holding=holding)
    if not subject.connected:
        # It may be away, or the new config may have killed it.
        return Counts(targets=1, offered=1, silent=1)
    # Agents that were already unhealthy do not count against the change; those that recovered count for it.
    is_sample = subject.healthy is not None and (subject.healthy or before is not False)
    unhealthy = int(is_sample and subject.healthy is False)
    return Counts(
        targets=1,
        offered=1,
        applied=1,
        reporting=int(is_sample),
        unhealthy=unhealthy,
        lasting=int(unhealthy and case.is_lasting),
        holding=holding,
    )


def most_silent_ms(rollout: Rollout) -> float:
    """How long agents may take to answer."""
    return rollout.strategy.max_silent_s * 1000


def trouble(last_error: str, offering: Offering, case: Case, counts: Counts) -> tuple[Trouble, str] | None:
    """Return (problem, message of the agent); None if the agent has no problem.

    Args:
        last_error: the error in its health report.
        counts: how the agent was counted.
    """
    if counts.failed:
        messages = [f.error_message for f in offering.failures if case.candidate in (None, (f.slot, f.content_hash))]
        return Trouble.FAILED, messages[-1] if messages else ""
    if counts.unhealthy:
        return Trouble.UNHEALTHY, last_error
    return (Trouble.SILENT, "") if counts.silent else None


def judge(rollout: Rollout, regions: Mapping[str, RegionView]) -> Gate:
    """Judge the current stage.

    Args:
        regions: regions with targets on the candidate's side.
    """
    stage, strategy = rollout.current, rollout.strategy
    left_s = stage.duration_s - rollout.observed_s
    for name, region in sorted(regions.items()):
        if region.halted:
            return Gate(Verdict.FAIL, f"region {name} rolled back on its own: {region.halted}")
    missing = sorted(name for name, region in regions.items() if not region.connected)
    if rollout.at_once:
        return _judge_at_once(rollout, regions, missing)
    included = [r for r in regions.values() if r.connected or strategy.on_missing == "hold"]
    total = Counts()
    for region in included:
        total = total + region.counts
    decided = total.applied + total.failed
    samples = strategy.min_samples or min(_DEFAULT_SAMPLES, total.targets)
    failure = _failure(stage.success_criteria, total, samples, in_time=left_s > 0)
    if failure:
        return Gate(Verdict.FAIL, failure)
    if missing and strategy.on_missing == "hold":
        return Gate(Verdict.HOLD, _missing_reason(regions, missing))
    for name, region in sorted(regions.items()):
        if region.refused and region.connected:
            return Gate(Verdict.HOLD, f"region {name} cannot apply it: {region.refused}")
    if total.targets == 0:
        return Gate(Verdict.HOLD, "this stage matches no known agent")
    behind = sorted(name for name, region in regions.items() if region.connected and not region.current)
    if behind:
        return Gate(Verdict.WAITING, f"region {', '.join(behind)} has not applied the policy yet")
    if left_s > 0:
        return Gate(Verdict.WAITING, f"{_seconds(left_s)} of {stage.duration} left")
    if total.undecided:
        return Gate(Verdict.WAITING, f"{total.undecided} of {total.targets} agents have not answered yet")
    if decided < samples:
        return Gate(Verdict.HOLD, f"too few samples: {decided} agents answered, {samples} needed")
    criteria = stage.success_criteria
    allowed = _allowed_silence(criteria)
    if allowed is not None and _exceeds(total.silent, allowed, total.targets):
        return Gate(Verdict.HOLD, f"{total.silent} of {total.targets} agents are silent")
    if criteria.health_check_pass_rate is not None and total.reporting < min(samples, decided):
        return Gate(Verdict.HOLD, f"only {total.reporting} of {decided} agents on the candidate report their health")
    if missing and rollout.stage + 1 == len(strategy.stages):
        # Ending the last stage would give an excluded region at once, unjudged, what all others got in stages.
        return Gate(
            Verdict.HOLD, f"the online regions pass, but the last stage cannot end: {_missing_reason(regions, missing)}"
        )
    if stage.manual:
        return Gate(Verdict.WAITING, "waiting for manual promotion")
    return Gate(Verdict.PASS, _summary(total))


def _summary(total: Counts) -> str:
    unanswered = total.targets - total.applied - total.failed
    rest = f", {unanswered} away or silent" if unanswered else ""
    return f"{total.applied} of {total.targets} applied, {total.failed} failed{rest}"


def _missing_reason(regions: Mapping[str, RegionView], missing: Iterable[str]) -> str:
    """Why regions are missing."""
    offline = [name for name in missing if not regions[name].catching_up]
    if offline:
        return f"region {', '.join(offline)} is offline"
    return f"region {', '.join(missing)} is being updated"


def _judge_at_once(rollout: Rollout, regions: Mapping[str, RegionView], missing: list[str]) -> Gate:
    """Judge a change without a strategy. All agents are offered it at once, so it ends when they have decided."""
    total = total_of(regions)
    decided = total.applied + total.failed
    limit, minimum = rollout.current.success_criteria.error_rate_threshold, rollout.strategy.min_samples or 1
    # Failures arrive sooner than successes, so until all agents have decided the rate is over all targets.
    for base in (total.targets,) if total.undecided or missing else (total.targets, decided):
        if limit is not None and base >= minimum and _exceeds(total.failed, limit, base):
            return Gate(Verdict.FAIL, f"{total.failed} of {base} agents failed, more than {limit:.2%}")
    if missing:
        return Gate(Verdict.WAITING, _missing_reason(regions, missing))
    behind = sorted(name for name, region in regions.items() if not region.current and not region.refused)
    if behind:
        return Gate(Verdict.WAITING, f"region {', '.join(behind)} has not applied the policy yet")
    if total.undecided:
        return Gate(Verdict.WAITING, f"{total.undecided} of {total.targets} agents have not answered yet")
    if total.targets and not decided:
        return Gate(Verdict.WAITING, f"none of the {total.targets} agents has answered")
    return Gate(Verdict.PASS, _summary(total))


def _failure(criteria: SuccessCriteria, total: Counts, samples: int, *, in_time: bool) -> str:
    limit = criteria.error_rate_threshold
    decided = total.applied + total.failed
    # A rate needs samples, but failures that exceed the limit over all targets count at once.
    if (
        limit is not None
        and total.failed
        and (
            _exceeds(total.failed, limit, total.targets)
            or (decided >= samples and _exceeds(total.failed, limit, decided))
        )
    ):
        return f"{total.failed} of {decided} agents that answered failed, more than {limit:.2%}"
    minimum = criteria.health_check_pass_rate
    unhealthy = total.lasting if in_time else total.unhealthy
    if minimum is not None and unhealthy and total.reporting >= samples:
        rate = (total.reporting - unhealthy) / total.reporting
        if rate < minimum - _EPSILON:
            return (
                f"{unhealthy} of {total.reporting} agents on the candidate are unhealthy; "
                f"at least {minimum:.2%} must be healthy"
            )
    return ""


def _allowed_silence(criteria: SuccessCriteria) -> float | None:
    """The largest share of silent agents that still allows a verdict."""
    if criteria.error_rate_threshold is not None:
        return criteria.error_rate_threshold
    return None if criteria.health_check_pass_rate is None else 1 - criteria.health_check_pass_rate


def _exceeds(number: int, share: float, total: int) -> bool:
    """Whether a number exceeds a share of the total. Tolerates rounding: 29 of 100 does not exceed 0.29."""
    return number > share * total + _EPSILON


def _seconds(seconds: float) -> str:
    total = int(-(-seconds // 1))
    hours, rest = divmod(total, 3600)
    minutes, rest = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n) or "0s"


def total_of(regions: Mapping[str, RegionView]) -> Counts:
    """The sum over regions."""
    total = Counts()
    for region in regions.values():
        total = total + region.counts
    return total

"""Whether a stage may end: from what its agents report, never from nothing."""

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
_EXACT = 1e-9
"""What floats may be off by."""
LASTING_MS = 60_000
"""An agent is often unhealthy for moments when it starts on a new config: before a stage's time is up, only what lasts
counts."""


class Subject(NamedTuple):
    """An agent as gates see it."""

    connected: bool
    """It has a session, at a node that is waited for."""
    healthy: bool | None
    """What it says of its health; None for nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a rollout is to one of its targets."""

    rollout: Rollout
    candidate: Given | None
    """What the agent gets by it; None where the assignment is taken from it."""
    stable: Given | None
    """What it had before; None for nothing."""
    on_candidate: bool
    """Its bucket is below its region's threshold."""
    falls: bool
    """Where the assignment is taken from it: another one gives it something."""
    reports_status: bool
    """It tells what became of offers."""
    retry: int
    """Failures of an earlier retry generation are forgiven."""
    stage_is_late: bool = False
    """The stage began longer ago than agents may be silent."""
    offer_is_late: bool = False
    """The agent was offered what it has for longer than that."""
    is_lasting: bool = False
    """The agent has been as it is for a while."""
    is_last: bool = False
    """The stage is the last: who is away is waited for no more, and counts as silent."""

    def failures(self, offering: Offering) -> set[Given]:
        """What the agent could not apply, and nobody has forgiven."""
        return {(f.slot, f.content_hash) for f in offering.failed if f.retry >= self.retry and not f.forgiven}

    def is_in(self, slots: Iterable[OfferedSlot], given: Given | None) -> bool:
        """Whether something of this assignment is among slots."""
        return any(s.assignment == self.rollout.assignment and (s.slot, s.content_hash) == given for s in slots)


def count(subject: Subject, offering: Offering, case: Case) -> Counts:
    """Count one target of a rollout.

    Args:
        offering: what it was last offered of the rollout's kind.
    """
    if case.candidate is None:
        return _count_taken(subject, offering, case) if case.on_candidate else Counts()
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
        # Its turn has just come, or it is away, or its node holds the candidate back.
        if not subject.connected:
            return Counts(targets=1, silent=int(case.is_last))
        return Counts(targets=1, undecided=int(not case.stage_is_late), silent=int(case.stage_is_late))
    before = next((health for slot, health in zip(offering.slots, offering.baseline, strict=True)
                   if (slot.slot, slot.content_hash) == case.candidate), None)  # fmt: skip
    return _count_offered(subject, offering, case, before, holding)


def _count_taken(subject: Subject, offering: Offering, case: Case) -> Counts:
    if not case.falls:
        # It keeps what it has: nothing is offered that it could decide on.
        return Counts(targets=1, offered=1, applied=int(subject.connected), silent=int(not subject.connected))
    if case.is_in(offering.slots, case.stable):
        late = case.stage_is_late
        return Counts(targets=1, undecided=int(subject.connected and not late), silent=int(subject.connected and late))
    if offering.status == FAILED:
        return Counts(targets=1, offered=1, failed=1)
    was_ill = bool(offering.baseline) and all(health is False for health in offering.baseline)
    return _count_offered(subject, offering, case, False if was_ill else None, 0)


def _count_offered(subject: Subject, offering: Offering, case: Case, before: bool | None, holding: int) -> Counts:
    """Count an agent that was offered what it should have."""
    if not case.reports_status:
        return Counts(targets=1, offered=1, holding=holding)
    if offering.status != APPLIED:
        late = case.offer_is_late
        return Counts(targets=1, offered=1, silent=int(late), undecided=int(not late), holding=holding)
    if not subject.connected:
        # It may be away, or dead of what it applied: nobody can tell.
        return Counts(targets=1, offered=1, silent=1)
    # Who was unhealthy before is not held against the change; who became well counts for it.
    counted = subject.healthy is not None and (subject.healthy or before is not False)
    unhealthy = int(counted and subject.healthy is False)
    return Counts(
        targets=1,
        offered=1,
        applied=1,
        reporting=int(counted),
        unhealthy=unhealthy,
        lasting=int(unhealthy and case.is_lasting),
        holding=holding,
    )


def most_silent_ms(rollout: Rollout) -> float:
    """How long agents may be silent."""
    return rollout.strategy.max_silent_s * 1000


def trouble(last_error: str, offering: Offering, case: Case, counted: Counts) -> tuple[Trouble, str] | None:
    """(what is wrong, what the agent said of it) for one that is not well; None for one that is.

    Args:
        last_error: what it says of its health.
        counted: what it was counted as.
    """
    if counted.failed:
        said = [f.error_message for f in offering.failed if case.candidate in (None, (f.slot, f.content_hash))]
        return Trouble.FAILED, said[-1] if said else ""
    if counted.unhealthy:
        return Trouble.UNHEALTHY, last_error
    return (Trouble.SILENT, "") if counted.silent else None


def judge(rollout: Rollout, regions: Mapping[str, RegionView]) -> Gate:
    """What the gate of the current stage says.

    Args:
        regions: those that have targets on the candidate's side.
    """
    stage, strategy = rollout.current, rollout.strategy
    left_s = stage.duration_s - rollout.observed_s
    for name, region in sorted(regions.items()):
        if region.halted:
            return Gate(Verdict.FAIL, f"region {name} rolled back by itself: {region.halted}")
    missing = sorted(name for name, region in regions.items() if not region.connected)
    if rollout.at_once:
        return _judge_at_once(rollout, regions, missing)
    counted = [r for r in regions.values() if r.connected or strategy.on_missing == "hold"]
    total = Counts()
    for region in counted:
        total = total + region.counts
    decided = total.applied + total.failed
    samples = strategy.min_samples or min(_DEFAULT_SAMPLES, total.targets)
    failure = _failure(stage.success_criteria, total, samples, in_time=left_s > 0)
    if failure:
        return Gate(Verdict.FAIL, failure)
    if missing and strategy.on_missing == "hold":
        return Gate(Verdict.HOLD, _unheard(regions, missing))
    for name, region in sorted(regions.items()):
        if region.refused and region.connected:
            return Gate(Verdict.HOLD, f"region {name} cannot take it: {region.refused}")
    if total.targets == 0:
        return Gate(Verdict.HOLD, "this stage matches no known agent")
    behind = sorted(name for name, region in regions.items() if region.connected and not region.current)
    if behind:
        return Gate(Verdict.WAITING, f"region {', '.join(behind)} has not taken the policy yet")
    if left_s > 0:
        return Gate(Verdict.WAITING, f"{_seconds(left_s)} of {stage.duration} left")
    if total.undecided:
        return Gate(Verdict.WAITING, f"{total.undecided} of {total.targets} agents have not answered yet")
    if decided < samples:
        return Gate(Verdict.HOLD, f"too few samples: {decided} agents answered, {samples} needed")
    criteria = stage.success_criteria
    allowed = _allowed_silence(criteria)
    if allowed is not None and _more(total.silent, allowed, total.targets):
        return Gate(Verdict.HOLD, f"{total.silent} of {total.targets} agents are silent")
    if criteria.health_check_pass_rate is not None and total.reporting < min(samples, decided):
        return Gate(Verdict.HOLD, f"only {total.reporting} of {decided} agents on the candidate report their health")
    if missing and rollout.stage + 1 == len(strategy.stages):
        # An excluded region must not be given at once, unjudged, what all others took by stages.
        return Gate(Verdict.HOLD, f"the regions that are online are well; the end waits: {_unheard(regions, missing)}")
    if stage.manual:
        return Gate(Verdict.WAITING, "waiting for a person to promote it")
    quiet = total.targets - decided
    rest = f", {quiet} away or silent" if quiet else ""
    return Gate(Verdict.PASS, f"{total.applied} of {total.targets} applied, {total.failed} failed{rest}")


def _unheard(regions: Mapping[str, RegionView], missing: Iterable[str]) -> str:
    """Why regions cannot be heard."""
    dark = [name for name in missing if not regions[name].catching_up]
    if dark:
        return f"region {', '.join(dark)} is offline"
    return f"region {', '.join(missing)} is being updated"


def _judge_at_once(rollout: Rollout, regions: Mapping[str, RegionView], missing: list[str]) -> Gate:
    """Of a change without a strategy: everybody has been offered it, so that it is over when they have decided."""
    total = total_of(regions)
    decided = total.applied + total.failed
    said = f"{total.applied} of {total.targets} applied, {total.failed} failed"
    limit, least = rollout.current.success_criteria.error_rate_threshold, rollout.strategy.min_samples or 1
    # Agents fail faster than they apply: until all have decided, the share is of all that it is for, not of the first ones.
    for of in (total.targets,) if total.undecided or missing else (total.targets, decided):
        if limit is not None and of >= least and _more(total.failed, limit, of):
            return Gate(Verdict.FAIL, f"{total.failed} of {of} agents failed, more than {limit:.2%}")
    if missing:
        return Gate(Verdict.WAITING, _unheard(regions, missing))
    behind = sorted(name for name, region in regions.items() if not region.current and not region.refused)
    if behind:
        return Gate(Verdict.WAITING, f"region {', '.join(behind)} has not taken the policy yet")
    if total.undecided:
        return Gate(Verdict.WAITING, f"{total.undecided} of {total.targets} agents have not answered yet")
    if total.targets and not decided:
        return Gate(Verdict.WAITING, f"none of the {total.targets} agents has answered")
    quiet = total.targets - decided
    return Gate(Verdict.PASS, said + (f", {quiet} away or silent" if quiet else ""))


def _failure(criteria: SuccessCriteria, total: Counts, samples: int, *, in_time: bool) -> str:
    limit = criteria.error_rate_threshold
    decided = total.applied + total.failed
    # So many failures that nothing can make up for them count at once; a rate needs samples.
    if (
        limit is not None
        and total.failed
        and (_more(total.failed, limit, total.targets) or (decided >= samples and _more(total.failed, limit, decided)))
    ):
        return f"{total.failed} of {decided} agents that answered failed, more than {limit:.2%}"
    least = criteria.health_check_pass_rate
    unhealthy = total.lasting if in_time else total.unhealthy
    if least is not None and unhealthy and total.reporting >= samples:
        rate = (total.reporting - unhealthy) / total.reporting
        if rate < least - _EXACT:
            return f"{unhealthy} of {total.reporting} agents on the candidate are unhealthy, fewer than {least:.2%} healthy"
    return ""


def _allowed_silence(criteria: SuccessCriteria) -> float | None:
    """The share of silent agents that still tells something of all."""
    if criteria.error_rate_threshold is not None:
        return criteria.error_rate_threshold
    return None if criteria.health_check_pass_rate is None else 1 - criteria.health_check_pass_rate


def _more(number: int, share: float, of: int) -> bool:
    """Whether a number is more than a share, where 29 of 100 are not more than 0.29."""
    return number > share * of + _EXACT


def _seconds(seconds: float) -> str:
    whole = int(-(-seconds // 1))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n) or "0s"


def total_of(regions: Mapping[str, RegionView]) -> Counts:
    """The sum over regions."""
    total = Counts()
    for region in regions.values():
        total = total + region.counts
    return total

"""Whether a stage may end: from what its agents report, never from nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from relay.control.rollouts.model import Counts, Gate, RegionView, Rollout, Verdict
from relay.opamp.offer import Failure, OfferedSlot
from relay.policy.strategy import SuccessCriteria

_DEFAULT_SAMPLES = 5
_LASTING_MS = 60_000
"""An agent is often unhealthy for moments when it starts on a new config: before a stage's time is up, only what lasts
counts."""


class Subject(Protocol):
    """An agent as gates see it."""

    @property
    def offers(self) -> Iterable[OfferedSlot]:
        """What it was last offered, or has."""
        ...

    @property
    def applied(self) -> Iterable[OfferedSlot]:
        """What it last said to have applied."""
        ...

    @property
    def connected(self) -> bool: ...

    @property
    def status(self) -> str:
        """What it says of that offer: APPLIED, APPLYING, FAILED, or empty for nothing."""
        ...

    @property
    def offered_at_ms(self) -> int: ...
    @property
    def failed(self) -> Iterable[Failure]:
        """What it could not apply."""
        ...

    @property
    def healthy(self) -> bool | None: ...
    @property
    def last_error(self) -> str:
        """What it says of its health."""
        ...

    @property
    def healthy_before(self) -> bool | None:
        """Its health when it was offered what it has."""
        ...

    @property
    def changed_ms(self) -> int: ...
    @property
    def reports_status(self) -> bool:
        """Whether it tells what became of configs."""
        ...


def count(
    subject: Subject,
    rollout: Rollout,
    *,
    candidate: bytes | None,
    stable: bytes | None,
    on_candidate: bool,
    retry: int,
    now_ms: int,
) -> Counts:
    """Count one target of a rollout.

    Args:
        candidate: content hash of what the agent gets by it; None where the assignment is taken from the agent.
        stable: of what it had before; None for nothing. An agent for which nothing changes is no target.
        on_candidate: the agent's bucket is below its region's threshold.
        retry: failures of an earlier retry generation are forgiven.
    """
    if candidate == stable:
        return Counts()
    name = rollout.assignment
    failures = {f.content_hash for f in subject.failed if f.retry >= retry}
    failed = candidate in failures
    offered = any(s.assignment == name and s.content_hash == candidate for s in subject.offers)
    runs = any(s.assignment == name and s.content_hash == candidate for s in subject.applied)
    can_go_back = stable is not None and stable not in failures
    holding = int(can_go_back and subject.connected and (runs or (offered and not failed)))
    if not on_candidate:
        return Counts(holding=holding)
    if failed:
        return Counts(targets=1, offered=1, failed=1, holding=holding)
    quiet_since_ms = subject.offered_at_ms if offered else rollout.stage_started_ms
    late = now_ms - quiet_since_ms >= rollout.strategy.max_silent_s * 1000
    if candidate is not None and not offered:
        # Its turn has just come, or it is away, or its node holds the candidate back.
        return Counts(targets=1, undecided=int(subject.connected and not late), silent=int(subject.connected and late))
    if not subject.reports_status:
        return Counts(targets=1, offered=1, holding=holding)
    if candidate is not None and subject.status != "APPLIED":
        return Counts(targets=1, offered=1, silent=int(late), undecided=int(not late), holding=holding)
    if not subject.connected:
        # It may be away, or dead of what it applied: nobody can tell.
        return Counts(targets=1, offered=1, silent=1)
    # Who was unhealthy before is not held against the change; who became well counts for it.
    counted = subject.healthy is not None and (subject.healthy or subject.healthy_before is not False)
    unhealthy = int(counted and subject.healthy is False)
    return Counts(
        targets=1,
        offered=1,
        applied=1,
        reporting=int(counted),
        unhealthy=unhealthy,
        lasting=int(unhealthy and now_ms - subject.changed_ms >= _LASTING_MS),
        holding=holding,
    )


def trouble(subject: Subject, counted: Counts, candidate: bytes | None) -> tuple[str, str] | None:
    """(`failed`, `unhealthy` or `silent`, what the agent said of it) for one that is not well; None for one that is."""
    if counted.failed:
        said = [f.error_message for f in subject.failed if f.content_hash == candidate]
        return "failed", said[-1] if said else ""
    if counted.unhealthy:
        return "unhealthy", subject.last_error
    return ("silent", "") if counted.silent else None


def judge(rollout: Rollout, regions: Mapping[str, RegionView], now_ms: int) -> Gate:
    """What the gate of the current stage says.

    Args:
        regions: those that have targets on the candidate's side.
    """
    stage, strategy = rollout.current, rollout.strategy
    # A clock that went back makes a stage longer, never shorter.
    left_s = stage.duration_s - max(0, now_ms - rollout.stage_started_ms) / 1000
    for name, region in sorted(regions.items()):
        if region.halted:
            return Gate(Verdict.FAIL, f"region {name} went back by itself: {region.halted}")
    missing = sorted(name for name, region in regions.items() if not region.connected)
    counted = [r for r in regions.values() if r.connected or strategy.on_missing == "hold"]
    total = Counts()
    for region in counted:
        total = total + region.counts
    decided = total.applied + total.failed
    samples = min(strategy.min_samples or _DEFAULT_SAMPLES, total.targets)
    failure = _failure(stage.success_criteria, total, samples, in_time=left_s > 0)
    if failure:
        return Gate(Verdict.FAIL, failure)
    if missing and strategy.on_missing == "hold":
        return Gate(Verdict.HOLD, f"region {', '.join(missing)} cannot be heard")
    for name, region in sorted(regions.items()):
        if region.refused and region.connected:
            return Gate(Verdict.HOLD, f"region {name} cannot take it: {region.refused}")
    if total.targets == 0:
        return Gate(Verdict.HOLD, "no agent is known that this stage is for")
    behind = sorted(name for name, region in regions.items() if region.connected and not region.current)
    if behind:
        return Gate(Verdict.WAITING, f"region {', '.join(behind)} has yet to take the policy")
    if left_s > 0:
        return Gate(Verdict.WAITING, f"{_seconds(left_s)} of {stage.duration} left")
    if total.undecided:
        return Gate(Verdict.WAITING, f"{total.undecided} of {total.targets} agents have yet to decide")
    if decided < samples:
        return Gate(Verdict.HOLD, f"too few samples: {decided} decided, {samples} needed")
    criteria = stage.success_criteria
    allowed = _allowed_silence(criteria)
    if allowed is not None and total.silent > allowed * total.targets:
        return Gate(Verdict.HOLD, f"{total.silent} of {total.targets} agents are silent")
    if criteria.health_check_pass_rate is not None and total.reporting < min(samples, decided):
        return Gate(Verdict.HOLD, f"only {total.reporting} of {decided} agents on the candidate tell of their health")
    if missing and rollout.stage + 1 == len(strategy.stages):
        # An excluded region must not be given at once, unjudged, what all others took by stages.
        return Gate(Verdict.HOLD, f"all that can be heard is well; the end waits for region {', '.join(missing)}")
    if stage.manual:
        return Gate(Verdict.WAITING, "waits for a person to promote it")
    quiet = total.targets - decided
    rest = f", {quiet} away or silent" if quiet else ""
    return Gate(Verdict.PASS, f"{total.applied} of {total.targets} applied, {total.failed} failed{rest}")


def _failure(criteria: SuccessCriteria, total: Counts, samples: int, *, in_time: bool) -> str:
    limit = criteria.error_rate_threshold
    decided = total.applied + total.failed
    # So many failures that nothing can make up for them count at once; a rate needs samples.
    if (
        limit is not None
        and total.failed
        and (total.failed > limit * total.targets or (decided >= samples and total.failed > limit * decided))
    ):
        return f"{total.failed} of {decided} agents that decided failed, more than {limit:.2%}"
    least = criteria.health_check_pass_rate
    unhealthy = total.lasting if in_time else total.unhealthy
    if least is not None and unhealthy and total.reporting >= samples:
        rate = (total.reporting - unhealthy) / total.reporting
        if rate < least:
            return f"{unhealthy} of {total.reporting} agents on the candidate are unhealthy, fewer than {least:.2%} healthy"
    return ""


def _allowed_silence(criteria: SuccessCriteria) -> float | None:
    """The share of silent agents that still tells something of all."""
    if criteria.error_rate_threshold is not None:
        return criteria.error_rate_threshold
    return None if criteria.health_check_pass_rate is None else 1 - criteria.health_check_pass_rate


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

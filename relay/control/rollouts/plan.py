"""The steps of a rollout: thresholds, verdicts and user actions. All functions are pure; the time is an argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from relay.control.rollouts.counts import Gate, RegionView, TargetList, Verdict
from relay.control.rollouts.gates import judge, total_of
from relay.control.rollouts.rollout import ACTIVE, ALL, GOING, ApprovalGiven, Passed, Rollout, RolloutState
from relay.errors import Conflict
from relay.policy.rollout import EVERYONE, bucket, threshold
from relay.policy.strategy import DAYS, OnFailure, StrategySpec, Window

_DIGEST_CHARS = 8
"""The fewest digits that an approval must give."""
Targets = TargetList | Collection[tuple[str, str]]
"""(region, agent id) of every target of a rollout."""


def thresholds(
    name: str, strategy: StrategySpec, stage: int, targets: Targets, previous: Mapping[str, int]
) -> dict[str, int]:
    """The thresholds of a stage by region; `""` stands for all other regions. None is lower than in `previous`.

    Args:
        name: the name of the rollout; it seeds the buckets.
        previous: the thresholds of the stage before.
    """
    done = strategy.stages[: stage + 1]
    percentage = max((s.percentage for s in done if s.percentage is not None), default=0.0)
    result: dict[str, int] = {}
    if percentage >= 100:
        return dict(ALL)
    if percentage:
        by_region: dict[str, list[int]] = {}
        for region, agent_id in targets:
            by_region.setdefault(region, []).append(bucket(name, agent_id))
        if strategy.spread == "per_region":
            result = {region: threshold(buckets, percentage) for region, buckets in by_region.items()}
        else:
            result = {"": threshold((b for buckets in by_region.values() for b in buckets), percentage)}
    for region in {r for s in done for r in s.regions or []}:
        result[region] = EVERYONE
    for region in previous.keys() | {""}:
        common = result.get("", 0)
        result[region] = max(result.get(region, common), previous.get(region, previous.get("", 0)))
    return result


def begin(rollout: Rollout, targets: Targets, now_ms: int) -> Rollout:
    """Start the first stage of a rollout."""
    return _enter(dataclasses.replace(rollout, thresholds={}, passed=()), 0, targets, now_ms)


def hold(rollout: Rollout, reason: str) -> Rollout:
    """Hold a rollout that cannot begin yet."""
    if rollout.state not in (RolloutState.RUNNING, RolloutState.HELD) or (
        rollout.state is RolloutState.HELD and rollout.reason == reason
    ):
        return rollout
    return dataclasses.replace(rollout, state=RolloutState.HELD, reason=reason)


def complete_at_once(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """Complete a rollout that needs no stages."""
    started = dataclasses.replace(rollout, thresholds=dict(ALL), stage_started_ms=now_ms)
    return _end(started, RolloutState.COMPLETED, reason, now_ms)


def _enter(rollout: Rollout, stage: int, targets: Targets, now_ms: int) -> Rollout:
    return dataclasses.replace(
        rollout,
        state=RolloutState.RUNNING,
        stage=stage,
        stage_started_ms=now_ms,
        observed_s=0.0,
        thresholds=thresholds(rollout.name, rollout.strategy, stage, targets, rollout.thresholds),
        reason="",
    )


def advance(rollout: Rollout, gate: Gate, regions: Mapping[str, RegionView], targets: Targets, now_ms: int) -> Rollout:
    """Go to the next stage, or complete the rollout after the last."""
    rollout = recorded(rollout, gate, regions, now_ms)
    if rollout.stage + 1 < len(rollout.strategy.stages):
        return _enter(rollout, rollout.stage + 1, targets, now_ms)
    return _end(rollout, RolloutState.COMPLETED, gate.reason, now_ms)


def recorded(rollout: Rollout, gate: Gate, regions: Mapping[str, RegionView], now_ms: int) -> Rollout:
    """Return the rollout with the result of its current stage recorded."""
    record = Passed(
        rollout.stage_started_ms,
        now_ms,
        total_of(regions).plain(),
        {"verdict": gate.verdict.value, "reason": gate.reason},
    )
    return dataclasses.replace(rollout, passed=(*rollout.passed[: rollout.stage], record))


def _end(rollout: Rollout, state: RolloutState, reason: str, now_ms: int) -> Rollout:
    return dataclasses.replace(rollout, state=state, reason=reason, ended_ms=now_ms)


def step(rollout: Rollout, regions: Mapping[str, RegionView], targets: Targets, now_ms: int) -> Rollout:
    """Take the step that the current state calls for; returns the same object if there is none."""
    if rollout.state is RolloutState.ROLLING_BACK:
        return _roll_back_step(rollout, regions, now_ms)
    if rollout.state not in (RolloutState.RUNNING, RolloutState.HELD):
        return rollout
    if targets and not any(rollout.thresholds.values()):
        # No target was known when the stage began, but now there is one.
        restarted = _enter(rollout, rollout.stage, targets, now_ms)
        if any(restarted.thresholds.values()):
            return restarted
    gate = verdict(rollout, regions, now_ms)
    if gate.verdict is Verdict.FAIL:
        return fail(recorded(rollout, gate, regions, now_ms), gate.reason)
    if gate.verdict is Verdict.PASS:
        return advance(rollout, gate, regions, targets, now_ms)
    state = RolloutState.HELD if gate.verdict is Verdict.HOLD else RolloutState.RUNNING
    if rollout.state is state:
        return rollout
    return dataclasses.replace(rollout, state=state, reason=gate.reason if state is RolloutState.HELD else "")


def verdict(rollout: Rollout, regions: Mapping[str, RegionView], now_ms: int) -> Gate:
    """Judge the current stage, and check the windows in which stages may end."""
    gate = judge(rollout, regions)
    if gate.verdict is Verdict.PASS and not open_now(rollout.strategy.windows, now_ms):
        return Gate(
            Verdict.WAITING,
            f"outside the windows in which stages may advance; otherwise the gate passes: {gate.reason}",
        )
    return gate


def fail(rollout: Rollout, reason: str) -> Rollout:
    """Pause or roll back after a failed stage, as the rollout's `on_failure` says."""
    stage = rollout.current.name
    rollout = dataclasses.replace(rollout, failed=True)
    if rollout.on_failure is OnFailure.PAUSE:
        return dataclasses.replace(rollout, state=RolloutState.PAUSED, reason=f"stage {stage} failed: {reason}")
    return _start_rollback(rollout, f"stage {stage} failed: {reason}")


def _start_rollback(rollout: Rollout, reason: str) -> Rollout:
    return dataclasses.replace(rollout, state=RolloutState.ROLLING_BACK, reason=reason)


def _roll_back_step(rollout: Rollout, regions: Mapping[str, RegionView], now_ms: int) -> Rollout:
    if rollout.stable is None:
        reason = (
            f"{rollout.reason}; there was no earlier revision: agents that match nothing else keep their configuration"
        )
        return dataclasses.replace(rollout, state=RolloutState.ROLLED_BACK, ended_ms=now_ms, reason=reason)
    holding = any(region.counts.holding for region in regions.values())
    return rollout if holding else dataclasses.replace(rollout, state=RolloutState.ROLLED_BACK, ended_ms=now_ms)


def open_now(windows: Iterable[Window], now_ms: int) -> bool:
    """Whether a window is open, or there are none."""
    windows = list(windows)
    return not windows or any(_open(window, now_ms) for window in windows)


def _open(window: Window, now_ms: int) -> bool:
    local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(window.time_zone))
    clock = f"{local:%H:%M}"
    today, yesterday = (DAYS[(local - timedelta(days=d)).weekday()] for d in (0, 1))
    if window.end is None or window.end > window.start:
        return today in window.days and window.start <= clock and (window.end is None or clock < window.end)
    return (today in window.days and clock >= window.start) or (yesterday in window.days and clock < window.end)


# ---- user actions


def _expect(rollout: Rollout, states: Iterable[RolloutState], action: str) -> None:
    if rollout.state not in states:
        undo = f"; to go back to the previous revision, run `opampctl rollout undo {rollout.assignment}`"
        hint = undo if rollout.state is RolloutState.COMPLETED else ""
        raise Conflict(f"{rollout.name} is {rollout.state.value.replace('_', ' ')}; it cannot be {action}{hint}")


def approve(rollout: Rollout, actor: str, digest: str, now_ms: int) -> Rollout:
    """Add an approval.

    Raises:
        Conflict: no approval is needed, the digest is another one, or the actor is an author or has already approved.
    """
    _expect(rollout, [RolloutState.PENDING_APPROVAL], "approved")
    if len(digest) < _DIGEST_CHARS or not rollout.digest.startswith(digest):
        raise Conflict(f"{rollout.name} has changed since you looked (digest {rollout.digest[:16]}); review it again")
    if rollout.four_eyes and actor.casefold() in {
        author.casefold() for author in (rollout.created_by, *rollout.authors)
    }:
        raise Conflict(f"{actor} made this change; somebody else must approve it")
    if any(a.actor.casefold() == actor.casefold() for a in rollout.approvals):
        raise Conflict(f"{actor} has already approved {rollout.name}")
    return dataclasses.replace(rollout, approvals=(*rollout.approvals, ApprovalGiven(actor, now_ms, rollout.digest)))


def approved(rollout: Rollout) -> bool:
    """Whether it has all approvals it needs."""
    return len(rollout.approvals) >= rollout.needed


def reject(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """Reject a change that waits for approval."""
    _expect(rollout, [RolloutState.PENDING_APPROVAL], "rejected")
    return _end(rollout, RolloutState.REJECTED, reason, now_ms)


def pause(rollout: Rollout, reason: str) -> Rollout:
    """Pause until `resume`."""
    _expect(rollout, [RolloutState.RUNNING, RolloutState.HELD], "paused")
    return dataclasses.replace(rollout, state=RolloutState.PAUSED, reason=reason)


def resume(rollout: Rollout) -> Rollout:
    """Resume after a pause."""
    _expect(rollout, [RolloutState.PAUSED], "resumed")
    passed = rollout.passed[: rollout.stage]
    return dataclasses.replace(rollout, state=RolloutState.RUNNING, reason="", failed=False, passed=passed)


def try_again(rollout: Rollout, now_ms: int) -> Rollout:
    """Restart the current stage, with its failures forgiven."""
    _expect(rollout, GOING, "tried again")
    return dataclasses.replace(
        rollout,
        state=RolloutState.RUNNING,
        reason="",
        failed=False,
        stage_started_ms=now_ms,
        observed_s=0.0,
        passed=rollout.passed[: rollout.stage],
    )


def promote(
    rollout: Rollout, stage: int, reason: str, regions: Mapping[str, RegionView], targets: Targets, now_ms: int
) -> Rollout:
    """End the current stage without its gate.

    Args:
        stage: the stage that the user saw. If two users promote at once, the second is refused.
    """
    _expect(rollout, GOING, "promoted")
    if stage != rollout.stage:
        raise Conflict(f"{rollout.name} is now in stage {rollout.current.name}; review it again")
    return advance(rollout, Gate(Verdict.PASS, reason), regions, targets, now_ms)


def roll_back(rollout: Rollout, reason: str) -> Rollout:
    """Return all agents to the stable revision."""
    _expect(rollout, GOING, "rolled back")
    return _start_rollback(rollout, reason)


def abort(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """End the rollout. Agents return to the stable revision, but nothing waits for them."""
    _expect(rollout, ACTIVE, "aborted")
    return _end(rollout, RolloutState.ABORTED, reason, now_ms)


def supersede(rollout: Rollout, by: str, now_ms: int) -> Rollout:
    """End the rollout in favour of a newer one."""
    return _end(rollout, RolloutState.SUPERSEDED, f"superseded by {by}", now_ms) if rollout.active else rollout

"""The steps of a rollout: thresholds of a stage, what a verdict leads to, what people may do. Pure: time is an argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from relay.control.rollouts.counts import Gate, Goals, RegionView, Verdict
from relay.control.rollouts.gates import judge, total_of
from relay.control.rollouts.rollout import ACTIVE, ALL, GOING, ApprovalGiven, Passed, Rollout, RolloutState
from relay.errors import Conflict
from relay.policy.rollout import EVERYONE, bucket, threshold
from relay.policy.strategy import DAYS, OnFailure, StrategySpec, Window

_DIGEST_CHARS = 8
"""The fewest digits that say which change is meant."""
Targets = Goals | Collection[tuple[str, str]]
"""(region, agent id) of every agent that a rollout is for."""


def thresholds(
    name: str, strategy: StrategySpec, stage: int, targets: Targets, held: Mapping[str, int]
) -> dict[str, int]:
    """The thresholds of a stage, by region; `""` for regions that are not named. None is lower than in `held`.

    Args:
        name: of the rollout; it seeds the buckets.
        held: those of the stage before.
    """
    done = strategy.stages[: stage + 1]
    percentage = max((s.percentage for s in done if s.percentage is not None), default=0.0)
    found: dict[str, int] = {}
    if percentage >= 100:
        return dict(ALL)
    if percentage:
        by_region: dict[str, list[int]] = {}
        for region, agent_id in targets:
            by_region.setdefault(region, []).append(bucket(name, agent_id))
        if strategy.spread == "per_region":
            found = {region: threshold(buckets, percentage) for region, buckets in by_region.items()}
        else:
            found = {"": threshold((b for buckets in by_region.values() for b in buckets), percentage)}
    for region in {r for s in done for r in s.regions or []}:
        found[region] = EVERYONE
    for region in held.keys() | {""}:
        common = found.get("", 0)
        found[region] = max(found.get(region, common), held.get(region, held.get("", 0)))
    return found


def begin(rollout: Rollout, targets: Targets, now_ms: int) -> Rollout:
    """Start the first stage of a rollout that may go out."""
    return _enter(dataclasses.replace(rollout, thresholds={}, passed=()), 0, targets, now_ms)


def hold(rollout: Rollout, reason: str) -> Rollout:
    """It cannot begin yet."""
    if rollout.state not in (RolloutState.RUNNING, RolloutState.HELD) or (
        rollout.state is RolloutState.HELD and rollout.reason == reason
    ):
        return rollout
    return dataclasses.replace(rollout, state=RolloutState.HELD, reason=reason)


def complete_at_once(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """A rollout that needs no stages is over when it begins."""
    begun = dataclasses.replace(rollout, thresholds=dict(ALL), stage_started_ms=now_ms)
    return _end(begun, RolloutState.COMPLETED, reason, now_ms)


def _enter(rollout: Rollout, stage: int, targets: Targets, now_ms: int) -> Rollout:
    found = thresholds(rollout.name, rollout.strategy, stage, targets, rollout.thresholds)
    return dataclasses.replace(
        rollout,
        state=RolloutState.RUNNING,
        stage=stage,
        stage_started_ms=now_ms,
        observed_s=0.0,
        thresholds=found,
        reason="",
    )


def advance(rollout: Rollout, gate: Gate, regions: Mapping[str, RegionView], targets: Targets, now_ms: int) -> Rollout:
    """Leave the current stage for the next, or for the end."""
    rollout = recorded(rollout, gate, regions, now_ms)
    if rollout.stage + 1 < len(rollout.strategy.stages):
        return _enter(rollout, rollout.stage + 1, targets, now_ms)
    return _end(rollout, RolloutState.COMPLETED, gate.reason, now_ms)


def recorded(rollout: Rollout, gate: Gate, regions: Mapping[str, RegionView], now_ms: int) -> Rollout:
    """With what the current stage came to."""
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
    """What follows from what is known now; the rollout itself where nothing does."""
    if rollout.state is RolloutState.ROLLING_BACK:
        return _back(rollout, regions, now_ms)
    if rollout.state not in (RolloutState.RUNNING, RolloutState.HELD):
        return rollout
    if targets and not any(rollout.thresholds.values()):
        # Nobody was known when the stage began: now somebody is.
        again = _enter(rollout, rollout.stage, targets, now_ms)
        if any(again.thresholds.values()):
            return again
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
    """The gate of the current stage, with the windows in which stages may end."""
    gate = judge(rollout, regions)
    if gate.verdict is Verdict.PASS and not open_now(rollout.strategy.windows, now_ms):
        return Gate(
            Verdict.WAITING, f"outside the windows in which stages may advance; otherwise it passes: {gate.reason}"
        )
    return gate


def fail(rollout: Rollout, reason: str) -> Rollout:
    """A stage failed: what the strategy or the settings say happens."""
    stage = rollout.current.name
    rollout = dataclasses.replace(rollout, failed=True)
    if rollout.on_failure is OnFailure.PAUSE:
        return dataclasses.replace(rollout, state=RolloutState.PAUSED, reason=f"stage {stage} failed: {reason}")
    return _retreat(rollout, f"stage {stage} failed: {reason}")


def _retreat(rollout: Rollout, reason: str) -> Rollout:
    return dataclasses.replace(rollout, state=RolloutState.ROLLING_BACK, reason=reason)


def _back(rollout: Rollout, regions: Mapping[str, RegionView], now_ms: int) -> Rollout:
    if rollout.stable is None:
        reason = (
            f"{rollout.reason}; there was no earlier revision: agents that match nothing else keep their configuration"
        )
        return dataclasses.replace(rollout, state=RolloutState.ROLLED_BACK, ended_ms=now_ms, reason=reason)
    out = [name for name, r in regions.items() if r.counts.holding]
    return rollout if out else dataclasses.replace(rollout, state=RolloutState.ROLLED_BACK, ended_ms=now_ms)


def open_now(windows: Iterable[Window], now_ms: int) -> bool:
    """Whether one of the windows is open; none at all are always open."""
    windows = list(windows)
    return not windows or any(_open(window, now_ms) for window in windows)


def _open(window: Window, now_ms: int) -> bool:
    local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(window.time_zone))
    clock = f"{local:%H:%M}"
    today, yesterday = (DAYS[(local - timedelta(days=d)).weekday()] for d in (0, 1))
    if window.end is None or window.end > window.start:
        return today in window.days and window.start <= clock and (window.end is None or clock < window.end)
    return (today in window.days and clock >= window.start) or (yesterday in window.days and clock < window.end)


# ---- what people do


def _expect(rollout: Rollout, states: Iterable[RolloutState], action: str) -> None:
    if rollout.state not in states:
        undo = f"; `opampctl rollout undo {rollout.assignment}` asks for what was before"
        hint = undo if rollout.state is RolloutState.COMPLETED else ""
        raise Conflict(f"{rollout.name} is {rollout.state.value.replace('_', ' ')}; it cannot be {action}{hint}")


def approve(rollout: Rollout, actor: str, digest: str, now_ms: int) -> Rollout:
    """Take somebody's approval.

    Raises:
        Conflict: it needs none, is of something else, by the author, or by somebody who approved already.
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
    """Whether it has all the approvals that it needs."""
    return len(rollout.approvals) >= rollout.needed


def reject(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """Say no to a change that waits for approval."""
    _expect(rollout, [RolloutState.PENDING_APPROVAL], "rejected")
    return _end(rollout, RolloutState.REJECTED, reason, now_ms)


def pause(rollout: Rollout, reason: str) -> Rollout:
    """Stay where it is until `resume`."""
    _expect(rollout, [RolloutState.RUNNING, RolloutState.HELD], "paused")
    return dataclasses.replace(rollout, state=RolloutState.PAUSED, reason=reason)


def resume(rollout: Rollout) -> Rollout:
    """Go on after a pause."""
    _expect(rollout, [RolloutState.PAUSED], "resumed")
    passed = rollout.passed[: rollout.stage]
    return dataclasses.replace(rollout, state=RolloutState.RUNNING, reason="", failed=False, passed=passed)


def try_again(rollout: Rollout, now_ms: int) -> Rollout:
    """Begin the current stage anew, its failures forgiven."""
    _expect(rollout, GOING, "tried again")
    going = dataclasses.replace(rollout, state=RolloutState.RUNNING, reason="", failed=False, stage_started_ms=now_ms)
    going = dataclasses.replace(going, observed_s=0.0)
    return dataclasses.replace(going, passed=rollout.passed[: rollout.stage])


def promote(
    rollout: Rollout, stage: int, reason: str, regions: Mapping[str, RegionView], targets: Targets, now_ms: int
) -> Rollout:
    """End the current stage without its gate.

    Args:
        stage: the one that the person saw: of two who promote at once, one is told.
    """
    _expect(rollout, GOING, "promoted")
    if stage != rollout.stage:
        raise Conflict(f"{rollout.name} is now in stage {rollout.current.name}; review it again")
    return advance(rollout, Gate(Verdict.PASS, reason), regions, targets, now_ms)


def roll_back(rollout: Rollout, reason: str) -> Rollout:
    """Take everybody back to the stable revision."""
    _expect(rollout, GOING, "rolled back")
    return _retreat(rollout, reason)


def abort(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """End it: agents go back to the stable revision, and nobody waits for them."""
    _expect(rollout, ACTIVE, "aborted")
    return _end(rollout, RolloutState.ABORTED, reason, now_ms)


def supersede(rollout: Rollout, by: str, now_ms: int) -> Rollout:
    """A newer change takes over."""
    return _end(rollout, RolloutState.SUPERSEDED, f"superseded by {by}", now_ms) if rollout.active else rollout

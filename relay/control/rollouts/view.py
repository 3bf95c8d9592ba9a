"""The JSON of rollouts and assignments, for the command line, scripts and the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.counts import Counts, Gate, RegionView, TroubledAgent
from relay.control.rollouts.gates import total_of
from relay.control.rollouts.revision import GlobalRevision
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.documents import canonical_json
from relay.fleet.view import rfc3339
from relay.ids import sha256

_PREFIX = 12


def rollout_view(
    rollout: Rollout, regions: Mapping[str, RegionView], gate: Gate | None, troubled: Iterable[TroubledAgent]
) -> dict[str, Any]:
    """The JSON of a rollout.

    Args:
        regions: the current state of its regions; empty if it is over.
        gate: the gate of the current stage, if there is one.
        troubled: agents with problems to list.
    """
    return {
        "name": rollout.name,
        "assignment": rollout.assignment,
        "kind": rollout.candidate.kind,
        "state": rollout.state.value,
        "reason": rollout.reason,
        "stage": rollout.stage,
        "stages": _stages(rollout, regions, gate),
        "regions": {
            name: {**r.counts.plain(), "state": _region_state(rollout, r)} for name, r in sorted(regions.items())
        },
        "stable": revision_hash(rollout.stable),
        "candidate": revision_hash(rollout.candidate),
        "template": rollout.candidate.title,
        "stable_template": rollout.stable.title if rollout.stable else None,
        "troubled": [t._asdict() for t in troubled],
        "digest": rollout.digest,
        "created_by": rollout.created_by,
        "created": rfc3339(rollout.created_ms),
        "ended": rfc3339(rollout.ended_ms) if rollout.ended_ms else None,
        "approvals_needed": rollout.needed,
        "approvals": [
            {"actor": a.actor, "at": rfc3339(a.at_ms), "digest": a.digest, "verified": False} for a in rollout.approvals
        ],
    }


def _stages(rollout: Rollout, regions: Mapping[str, RegionView], gate: Gate | None) -> list[dict[str, Any]]:
    views: list[dict[str, Any]] = []
    for i, stage in enumerate(rollout.strategy.stages):
        view: dict[str, Any] = {"name": stage.name}
        if stage.percentage is not None:
            view["percentage"] = stage.percentage
        else:
            view["regions"] = stage.regions
        if i < len(rollout.passed):
            passed = rollout.passed[i]
            view |= {
                "state": "passed" if passed.gate["verdict"] == "pass" else "failed",
                "started": rfc3339(passed.started_ms),
                "counts": passed.counts,
                "gate": passed.gate,
            }
        elif i == rollout.stage and rollout.stage_started_ms and rollout.state is not RolloutState.PENDING_APPROVAL:
            current_gate = {"verdict": gate.verdict.value, "reason": gate.reason} if gate else None
            view |= {
                "state": "current" if rollout.state in GOING else rollout.state.value,
                "started": rfc3339(rollout.stage_started_ms),
                "counts": total_of(regions).plain(),
                "gate": current_gate
                or {
                    "verdict": "fail" if rollout.state is not RolloutState.COMPLETED else "pass",
                    "reason": rollout.reason,
                },
            }
        else:
            waiting = {"verdict": "waiting", "reason": "not started"}
            view |= {"state": "waiting", "started": None, "counts": Counts().plain(), "gate": waiting}
        views.append(view)
    return views


def _region_state(rollout: Rollout, region: RegionView) -> str:
    if rollout.state is RolloutState.ROLLING_BACK and region.counts.holding:
        return "divergent"
    if region.halted:
        return "halted"
    return "following" if region.connected else "dark"


def assignment_view(state: AssignmentState) -> dict[str, Any]:
    """The JSON of an assignment: its revision in force, and the one that was rolled back or rejected."""
    latest = state.pending or state.rollout
    waits = latest is not None and latest.active
    taken_back = state.declared is not None and state.declared != state.stable and not waits
    return {
        "name": state.name,
        "kind": state.kind,
        "in_force": _summary(state.stable),
        "taken_back": _summary(state.declared) if taken_back else None,
        "rollout": latest.name if latest is not None else None,
        "state": latest.state.value if latest is not None else None,
    }


def _summary(revision: GlobalRevision | None) -> dict[str, str | None] | None:
    return None if revision is None else {"template": revision.title, "revision": revision_hash(revision)}


def revision_hash(revision: GlobalRevision | None) -> str | None:
    """The first digits of the hash of a revision; None for None."""
    return None if revision is None else sha256(canonical_json(revision.plain())).hex()[:_PREFIX]

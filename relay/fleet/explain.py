"""Explain an agent: the decision in words, and the outcome of what it was offered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from relay.fleet.facts import Proof, Trusted, facts_of
from relay.fleet.rollup import status_name
from relay.fleet.view import rfc3339
from relay.opamp import capabilities
from relay.opamp.offer import Failure
from relay.opamp.offering import failures_of, slots_of
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.evaluate import Evaluator, applied_of
from relay.policy.explain import explain


def explain_agent(
    evaluator: Evaluator,
    state: link_pb2.AgentState,
    *,
    region: str,
    trusted: Trusted,
    withheld: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`{agent, region, slots, packages, attempts, notes}`; see `relay.policy.explain`.

    Args:
        trusted: attributes that count as labels.
        withheld: SHA-256 of package files that the agent's node cannot serve → why.
    """
    facts = facts_of(state.agent_description, state.agent_id, region, trusted, proof=Proof.of(state))
    config, package_offering = state.config, state.packages
    failed = failures_of([*config.failed, *package_offering.failed])
    slots, packages = explain(
        evaluator,
        facts,
        state.capabilities & capabilities.DECIDING,
        failed=tuple(f.attempt for f in failed),
        held=[slot.content_hash for slot in slots_of([*config.slots, *package_offering.slots])],
        applied=applied_of(config.applied, package_offering.applied),
    )
    notes = []
    if not state.capabilities & capabilities.ACCEPTS_REMOTE_CONFIG:
        notes.append("the agent does not accept remote configs: it is offered nothing")
    if not state.agent_description:
        notes.append("the agent has not sent its description: 10 s after the request for it, policy decides without it")
    notes += _repeated_errors(failed)
    attempts = [
        {"hash": f.content_hash.hex(), "status": "FAILED", "error_message": f.error_message, "at": rfc3339(f.at_ms)}
        for f in failed
    ]
    if config.hash:
        status = pb.RemoteConfigStatus.FromString(state.remote_config_status)
        is_current = status.last_remote_config_hash == config.hash
        attempts.append(
            {
                "hash": config.hash.hex(),
                "status": status_name(status.status) if is_current else "OFFERED",
                "error_message": status.error_message if is_current else "",
                "at": rfc3339(config.offered_at_unix_ms or state.last_change_unix_ms),
            }
        )
    if package_offering.hash:
        attempts.append(
            {
                "hash": package_offering.hash.hex(),
                "status": package_offering.status or "OFFERED",
                "error_message": package_offering.reason,
                "at": rfc3339(package_offering.offered_at_unix_ms or state.last_change_unix_ms),
            }
        )
    if packages is not None and not state.capabilities & capabilities.ACCEPTS_PACKAGES:
        notes.append("the agent does not accept packages: it is offered none")
    for name, package in (packages or {"packages": {}})["packages"].items():
        if reason := (withheld or {}).get(package["sha256"]):
            notes.append(f"package {name} {package['version']} is not offered: {reason}")
    return {
        "agent": state.agent_id,
        "region": region,
        "slots": slots,
        "packages": packages,
        "attempts": attempts,
        "notes": notes,
    }


def _repeated_errors(failed: Iterable[Failure]) -> list[str]:
    """A hint if several contents failed with the same text: then the contents are hardly to blame."""
    contents: dict[str, set[bytes]] = {}
    for failure in failed:
        if failure.error_message:
            contents.setdefault(failure.error_message, set()).add(failure.content_hash)
    return [
        f"{len(hashes)} different contents failed with the same text: perhaps the agent repeats an old failure."
        " opampsupervisor 0.149 with `validate_config: true` does so after a restart: set it to false, restart it, then"
        " run `opampctl rollout retry`"
        for hashes in contents.values()
        if len(hashes) > 1
    ]

"""An agent explained: the decision in words, and what became of what it was offered."""

from __future__ import annotations

from typing import Any, Literal

from relay.fleet.facts import facts_of
from relay.fleet.rollup import status_name
from relay.fleet.view import rfc3339
from relay.opamp import capabilities
from relay.opamp.record import failures_of, slots_of
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy import explain
from relay.policy.evaluate import Evaluator


def explain_agent(
    evaluator: Evaluator, state: link_pb2.AgentState, *, region: str, trusted: Literal["all"] | tuple[str, ...]
) -> dict[str, Any]:
    """`{agent, slots, attempts, notes}`; see `relay.policy.explain.slots`.

    Args:
        trusted: attributes that count as labels.
    """
    facts = facts_of(state.agent_description, state.agent_id, region, trusted)
    failed = failures_of(state.failed)
    slots = explain.slots(
        evaluator,
        facts,
        state.capabilities & capabilities.DECIDING,
        failed=tuple((f.slot, f.content_hash, f.retry) for f in failed),
        held=[slot.content_hash for slot in slots_of(state.offers)],
    )
    notes = []
    if not state.capabilities & capabilities.ACCEPTS_REMOTE_CONFIG:
        notes.append("the agent does not accept remote configs: it is offered nothing")
    if not state.agent_description:
        notes.append("the agent has not said who it is: it is offered nothing until it does")
    attempts = [
        {"hash": f.content_hash.hex(), "status": "FAILED", "error_message": f.error_message, "at": rfc3339(f.at_ms)}
        for f in failed
    ]
    if state.offered_hash:
        said = pb.RemoteConfigStatus.FromString(state.remote_config_status)
        about_offer = said.last_remote_config_hash == state.offered_hash
        attempts.append(
            {
                "hash": state.offered_hash.hex(),
                "status": status_name(said.status) if about_offer else "OFFERED",
                "error_message": said.error_message if about_offer else "",
                "at": rfc3339(state.offered_at_unix_ms or state.last_change_unix_ms),
            }
        )
    return {"agent": state.agent_id, "region": region, "slots": slots, "attempts": attempts, "notes": notes}

"""The JSON of an agent: one for the node's API and the control plane's, so that both say the same."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from relay.fleet.facts import labels_of
from relay.fleet.rollup import status_name
from relay.ids import format_uid
from relay.opamp import capabilities, identity
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2


def rfc3339(unix_ms: int) -> str:
    """A time as people and parsers read it; whole milliseconds, UTC."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def agent_view(
    state: link_pb2.AgentState,
    *,
    region: str,
    node: str,
    connected: bool | None,
    trusted: Literal["all"] | tuple[str, ...],
    fields: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """One agent as plain values.

    Args:
        state: what the node knows or reported.
        region: of the node.
        node: its name.
        connected: None where nobody can know because the node's link is down.
        trusted: attributes that count as labels.
        fields: give these alone; empty for all.
    """
    status = pb.RemoteConfigStatus.FromString(state.remote_config_status)
    health = pb.ComponentHealth.FromString(state.health) if state.HasField("health") else None
    view: dict[str, Any] = {
        "instance_uid": format_uid(state.instance_uid),
        "agent_id": state.agent_id or format_uid(state.instance_uid),
        "region": region,
        "node": node,
        "connected": connected,
        "transport": state.transport,
        "healthy": None if health is None else health.healthy,
        "health_error": health.last_error if health is not None else "",
        "labels": {},
        "attributes": {},
        "capabilities": [],
        "config": {
            "offered_hash": state.offered_hash.hex(),
            "reported_hash": status.last_remote_config_hash.hex(),
            "status": status_name(status.status),
            "error_message": status.error_message,
            "assignments": list(state.assignments),
        },
        "effective_config_digest": state.effective_config_digest.hex(),
        "first_seen": rfc3339(state.first_seen_unix_ms),
        "last_change": rfc3339(state.last_change_unix_ms),
    }
    # Parsing the description is most of the work: only for who wants it.
    if not fields or fields & {"labels", "attributes", "capabilities"}:
        view["attributes"] = identity.attributes(state.agent_description)
        view["labels"] = labels_of(view["attributes"], region, trusted)
        view["capabilities"] = capabilities.names(state.capabilities)
    return {name: view[name] for name in view.keys() & fields} if fields else view

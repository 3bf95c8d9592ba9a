"""The JSON of an agent, shared by the APIs of the node and the control plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from relay.fleet.names import HOST, VERSION
from relay.fleet.rollup import status_name
from relay.ids import format_uid
from relay.opamp import capabilities
from relay.opamp.offer import Failure
from relay.opamp.offering import FAILED, Offering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.selector import Facts


def rfc3339(unix_ms: int) -> str:
    """Format a time: whole milliseconds, UTC."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Subject:
    """An agent's state and where it comes from."""

    state: link_pb2.AgentState
    facts: Facts
    health: pb.ComponentHealth | None
    region: str
    node: str
    connected: bool | None

    @property
    def healthy(self) -> bool | None:
        """None if unknown: the agent is not connected or never reported its health."""
        return self.health.healthy if self.connected and self.health is not None else None


def _config(subject: _Subject) -> dict[str, Any]:
    status = pb.RemoteConfigStatus.FromString(subject.state.remote_config_status)
    failure = _failure(subject.state.config)
    return {
        "offered_hash": subject.state.config.hash.hex(),
        "reported_hash": status.last_remote_config_hash.hex(),
        # The agent may run and report its previous config; what counts is that it lacks the one it should have.
        "status": status_name(status.status) if failure is None else FAILED,
        "error_message": status.error_message if failure is None else failure.error_message,
        "assignments": _assignments(subject.state.config),
    }


def _failure(message: link_pb2.Offering) -> Failure | None:
    if not message.withheld:
        return None
    offering = Offering()
    offering.take(message)
    return offering.failure


def _assignments(message: link_pb2.Offering) -> list[str]:
    """The assignments that an agent belongs to, ordered by slot."""
    by_slot = {slot.slot: slot.assignment for slot in message.slots}
    by_slot |= {slot.slot: slot.assignment for slot in message.withheld}
    return [by_slot[slot] for slot in sorted(by_slot)]


def _withheld(subject: _Subject) -> list[dict[str, Any]]:
    """What an agent should have but is not given, and why."""
    offerings = ((CONFIG, subject.state.config), (PACKAGES, subject.state.packages))
    return [
        {
            "kind": kind,
            "slot": slot.slot,
            "assignment": slot.assignment,
            "content_hash": slot.content_hash.hex() or None,
            "reason": slot.reason or "the agent failed to apply it",
        }
        for kind, offering in offerings
        for slot in offering.withheld
    ]


def _packages(subject: _Subject) -> dict[str, Any]:
    if not (subject.state.package_statuses or subject.state.HasField("packages")):
        return {"offered_hash": "", "status": "", "error_message": "", "assignments": [], "installed": {}}
    reported = pb.PackageStatuses.FromString(subject.state.package_statuses)
    offering = subject.state.packages
    failure = _failure(offering)
    return {
        "offered_hash": offering.hash.hex(),
        "status": offering.status if failure is None else FAILED,
        "error_message": offering.reason if failure is None else failure.error_message,
        "assignments": _assignments(offering),
        "installed": {
            name: s.agent_has_version for name, s in sorted(reported.packages.items()) if s.agent_has_version
        },
    }


def _auth(subject: _Subject) -> dict[str, Any]:
    state = subject.state
    expires_ms = state.credential_expires_unix_ms
    return {
        "method": state.auth_method or "none",
        "subject": state.subject,
        "credential": state.credential_id,
        "expires": rfc3339(expires_ms) if expires_ms else None,
    }


_FIELDS: dict[str, Callable[[_Subject], Any]] = {
    "instance_uid": lambda s: format_uid(s.state.instance_uid),
    "agent_id": lambda s: s.state.agent_id or format_uid(s.state.instance_uid),
    "region": lambda s: s.region,
    "node": lambda s: s.node,
    "connected": lambda s: s.connected,
    "transport": lambda s: s.state.transport,
    "healthy": lambda s: s.healthy,
    "health_error": lambda s: s.health.last_error if s.health is not None else "",
    "labels": lambda s: s.facts.labels,
    "host_name": lambda s: s.facts.attributes.get(HOST),
    "version": lambda s: s.facts.attributes.get(VERSION),
    "attributes": lambda s: s.facts.attributes,
    "capabilities": lambda s: list(capabilities.names(s.state.capabilities)),
    "config": _config,
    "packages": _packages,
    "withheld": _withheld,
    "auth": _auth,
    "effective_config_digest": lambda s: s.state.effective_config_digest.hex(),
    "first_seen": lambda s: rfc3339(s.state.first_seen_unix_ms),
    "last_change": lambda s: rfc3339(s.state.last_change_unix_ms),
}
"""Field → function that computes it. Callers pay only for the fields that they ask for."""


def agent_view(
    state: link_pb2.AgentState,
    facts: Facts,
    *,
    region: str,
    node: str,
    connected: bool | None,
    fields: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """One agent as plain values.

    Args:
        state: as known to the node, or reported by it.
        facts: the agent's attributes and labels.
        region: region of the node.
        node: name of the node.
        connected: None if unknown because the node's link is down.
        fields: only these fields; empty for all.
    """
    health = pb.ComponentHealth.FromString(state.health) if state.HasField("health") else None
    subject = _Subject(state, facts, health, region, node, connected)
    return {name: make(subject) for name, make in _FIELDS.items() if not fields or name in fields}

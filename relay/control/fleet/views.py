"""Agents, nodes and regions as plain values for the API."""

from __future__ import annotations

from collections import Counter
from typing import Any

from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Census
from relay.control.fleet.fleet import SKEW_MS, Fleet
from relay.control.fleet.nodes import NodeState
from relay.fleet.view import agent_view, rfc3339
from relay.ids import format_uid
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2

_SHOWN = 20


def of(census: Census, agent: Agent, state: bytes, fields: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON of an agent, or of some of its fields.

    Args:
        state: its AgentState, as its node serialised it.
    """
    node = census.nodes[agent.node]
    return agent_view(
        link_pb2.AgentState.FromString(state),
        agent.facts,
        region=node.region,
        node=node.name,
        connected=census.connected(agent),
        fields=fields,
    )


async def whole(fleet: Fleet, agent: Agent) -> dict[str, Any]:
    """Like `of`, with the health tree and the components.

    Raises:
        NotFound: it was removed meanwhile, or its row is damaged.
        StoreError: the database failed.
    """
    serialised = (await fleet.records.row(agent)).state
    state = link_pb2.AgentState.FromString(serialised)
    health = pb.ComponentHealth.FromString(state.health) if state.HasField("health") else None
    components = await fleet.bodies.components(agent.components_digest) if agent.components_digest else None
    return {
        **of(fleet.census, agent, serialised),
        "health": None if health is None else _health(health),
        "components": {}
        if components is None
        else {section: sorted(part.sub_component_map) for section, part in sorted(components.components.items())},
    }


def _health(health: pb.ComponentHealth) -> dict[str, Any]:
    """The health of a component and its parts, without unset fields."""
    result: dict[str, Any] = {"healthy": health.healthy}
    if health.status:
        result["status"] = health.status
    if health.last_error:
        result["last_error"] = health.last_error
    if health.start_time_unix_nano:
        result["started"] = rfc3339(health.start_time_unix_nano // 1_000_000)
    if health.component_health_map:
        result["components"] = {name: _health(part) for name, part in sorted(health.component_health_map.items())}
    return result


def nodes(census: Census) -> list[dict[str, Any]]:
    """The JSON of all nodes."""
    return [
        {
            "name": node.name,
            "region": node.region,
            "connected": node.connected,
            "agents": len(node.agents),
            "connected_agents": node.rollup.connected if node.rollup else None,
            "manifest": list(node.manifest) if node.manifest else None,
            "policy_age_s": census.policy_age_s(node),
            "rejected": node.refusals,
            "package_files": len(node.blobs),
            "package_problems": [{"sha256": k, "reason": v} for k, v in sorted(node.blob_problems.items())],
            "version": node.software_version,
            "verified": node.verified,
            "departed": node.departed,
            "clock_skew_s": round(-node.behind_ms / 1000, 3),
            "refused_agents": [
                {"instance_uid": format_uid(uid), "reason": reason}
                for uid, reason in sorted(node.refused.items())[:_SHOWN]
            ],
            "problems": problems(node),
        }
        for _, node in sorted(census.nodes.items())
    ]


def problems(node: NodeState) -> list[str]:
    """Descriptions of the problems of a node."""
    messages = []
    if node.ahead is not None:
        messages.append(f"has manifest {node.ahead}, which this database never published: see /health")
    if node.unstored is not None:
        messages.append(f"reports have not been stored since {rfc3339(node.unstored[0])}: {node.unstored[1]}")
    if abs(node.behind_ms) > SKEW_MS:
        word = "behind" if node.behind_ms > 0 else "ahead"
        messages.append(f"its clock is {abs(node.behind_ms) / 1000:.1f} s {word}")
    if node.turned_away:
        messages.append("another process wants to report under its name, and was refused")
    if node.disputed:
        messages.append(f"{len(node.disputed)} of its agents are left out because they are live in another region")
    if node.refused:
        messages.append(f"{len(node.refused)} of its agents are left out because their states cannot be read")
    return messages


def regions(census: Census) -> list[dict[str, Any]]:
    """The JSON of all regions: sums of the last reports of their nodes. Agents of absent nodes count as unknown."""
    result: dict[str, dict[str, Any]] = {}
    for _, node in sorted(census.nodes.items()):
        region = result.setdefault(
            node.region,
            {
                "name": node.region,
                "nodes": 0,
                "nodes_connected": 0,
                "agents": 0,
                "connected": 0,
                "healthy": 0,
                "unhealthy": 0,
                "unknown": 0,
                "config_status": Counter(),
            },
        )
        region["nodes"] += 1
        region["nodes_connected"] += node.connected
        region["agents"] += len(node.agents)
        if node.rollup is None:
            region["unknown"] += len(node.agents)
            continue
        region["connected"] += node.rollup.connected
        region["healthy"] += node.rollup.healthy
        region["unhealthy"] += node.rollup.unhealthy
        region["config_status"].update(dict(node.rollup.config_status))
    return list(result.values())


def connected_by_region(census: Census) -> dict[str, int]:
    """Region → connected agents; for the metric."""
    return {view["name"]: view["connected"] for view in regions(census)}


def agents_by_class(census: Census) -> dict[tuple[str, str, str], int]:
    """(region, config status, healthy: `true`, `false` or `unknown`) → agents; for the metric."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for cell, number in census.cells.items():
        healthy = census.healthy(cell)
        word = "unknown" if healthy is None else str(healthy).lower()
        counts[cell.profile.region, cell.status, word] += number
    return dict(counts)

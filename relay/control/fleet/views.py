"""The fleet as people ask for it: agents, nodes and regions as plain values."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from relay.control.fleet import query
from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Census
from relay.control.fleet.fleet import SKEW_MS, Fleet
from relay.control.fleet.nodes import NodeState
from relay.fleet.view import agent_view, rfc3339
from relay.ids import format_uid
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import PACKAGES

_SHOWN = 20
MOST_NAMED = 1_000
"""Agents that an answer names where it counts all."""


def of(census: Census, agent: Agent, state: bytes, fields: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON of an agent, or only some of its fields.

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
    """`of`, with the tree of its health and the components that it has.

    Raises:
        NotFound: it has gone meanwhile, or its row is damaged.
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
    """A component's health and that of its parts; what it did not say is left out."""
    found: dict[str, Any] = {"healthy": health.healthy}
    if health.status:
        found["status"] = health.status
    if health.last_error:
        found["last_error"] = health.last_error
    if health.start_time_unix_nano:
        found["started"] = rfc3339(health.start_time_unix_nano // 1_000_000)
    if health.component_health_map:
        found["components"] = {name: _health(part) for name, part in sorted(health.component_health_map.items())}
    return found


def nodes(census: Census) -> list[dict[str, Any]]:
    """All nodes."""
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
            "clock_behind_s": round(node.behind_ms / 1000, 3),
            "refused_agents": [
                {"instance_uid": format_uid(uid), "reason": reason}
                for uid, reason in sorted(node.refused.items())[:_SHOWN]
            ],
            "problems": problems(node),
        }
        for _, node in sorted(census.nodes.items())
    ]


def problems(node: NodeState) -> list[str]:
    """What is not well with a node, in words."""
    found = []
    if node.ahead is not None:
        found.append(f"has manifest {node.ahead}, which this database never published: see /health")
    if node.unstored is not None:
        found.append(f"reports have not been stored since {rfc3339(node.unstored[0])}: {node.unstored[1]}")
    if abs(node.behind_ms) > SKEW_MS:
        word = "behind" if node.behind_ms > 0 else "ahead"
        found.append(f"its clock is {abs(node.behind_ms) / 1000:.1f} s {word}")
    if node.refused:
        found.append(f"{len(node.refused)} of its agents are left out: their states cannot be read")
    return found


def regions(census: Census) -> list[dict[str, Any]]:
    """All regions, in sums over what their nodes last reported; nodes that are away count as unknown."""
    found: dict[str, dict[str, Any]] = {}
    for _, node in sorted(census.nodes.items()):
        region = found.setdefault(
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
    return list(found.values())


def connected_by_region(census: Census) -> dict[str, int]:
    """For the metric."""
    return {view["name"]: view["connected"] for view in regions(census)}


_PACKAGE_STATES = {
    pb.PackageStatusEnum_Installed: "installed",
    pb.PackageStatusEnum_InstallPending: "installing",
    pb.PackageStatusEnum_Installing: "installing",
    pb.PackageStatusEnum_InstallFailed: "failed",
    pb.PackageStatusEnum_Downloading: "downloading",
}


class _Said(NamedTuple):
    """What an agent says of one package."""

    package: str
    state: str
    version: str
    """The one that is installed, or is to be."""
    rest: dict[str, Any]
    """Of one that is not there yet: how far it is."""


def package_status(census: Census, wanted: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """What agents say of packages: sums by package and region, and by name agents that are not there yet.

    Args:
        wanted: labels of the agents that count.

    Returns:
        `{packages: [{package, version, region, installed, installing, downloading, failed}], agents: [{agent, region,
        package, version, offered, state, percent, error_message}], agents_total}`; of many agents `MOST_NAMED` are named.
    """
    sums: dict[tuple[str, str, str], Counter[str]] = {}
    telling: list[dict[str, Any]] = []
    total = 0
    said: dict[bytes, list[_Said]] = {}
    for agent in census.shown():
        if not agent.reports(PACKAGES) or (wanted and not query.has_labels(agent, wanted)):
            continue
        if agent.package_statuses not in said:  # many say the same
            said[agent.package_statuses] = _said(agent.package_statuses)
        region = agent.profile.region
        for one in said[agent.package_statuses]:
            sums.setdefault((one.package, one.version, region), Counter())[one.state] += 1
            if one.state != "installed":
                total += 1
                if len(telling) < MOST_NAMED:
                    telling.append({"agent": agent.agent_id, "region": region, "package": one.package, **one.rest})
    words = ("installed", "installing", "downloading", "failed")
    packages = [
        {"package": name, "version": version, "region": region, **{word: counts[word] for word in words}}
        for (name, version, region), counts in sorted(sums.items())
    ]
    return {"packages": packages, "agents": telling, "agents_total": total}


def _said(statuses: bytes) -> list[_Said]:
    found = []
    for name, status in sorted(pb.PackageStatuses.FromString(statuses).packages.items()):
        state = _PACKAGE_STATES.get(status.status, "installing")
        rest = {
            "version": status.agent_has_version,
            "offered": status.server_offered_version,
            "state": state,
            "percent": round(status.download_details.download_percent, 1) if state == "downloading" else None,
            "error_message": status.error_message if state == "failed" else "",
        }
        version = status.agent_has_version if state == "installed" else status.server_offered_version
        found.append(_Said(name, state, version, rest))
    return found


def agents_by_class(census: Census) -> dict[tuple[str, str, str], int]:
    """(region, config status, healthy: `true`, `false` or `unknown`) → agents; for the metric."""
    found: Counter[tuple[str, str, str]] = Counter()
    for cell, number in census.cells.items():
        healthy = census.healthy(cell)
        word = "unknown" if healthy is None else str(healthy).lower()
        found[cell.profile.region, cell.status, word] += number
    return dict(found)

"""The fleet as people ask for it: agents, nodes and regions as plain values."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from relay.control.agents import Agent, NodeState
from relay.control.fleet import SKEW_MS, Fleet
from relay.errors import NotFound, Problem, Refused
from relay.fleet.view import agent_view, rfc3339
from relay.ids import format_uid, parse_uid
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.selector import canonical
from relay.policy.snapshot import PACKAGES

_SHOWN = 20


def rows(fleet: Fleet) -> list[Agent]:
    """One agent a row: of several uids of one agent id the live ones, or if none is live the newest."""
    first: dict[str, Agent] = {}
    more: dict[str, list[Agent]] = {}
    for agent in fleet.agents.values():
        name = agent.agent_id or agent.uid.hex()
        held = first.setdefault(name, agent)
        if held is not agent:
            more.setdefault(name, [held]).append(agent)
    for name, agents in more.items():
        live = [agent for agent in agents if agent.connected]
        first[name], *others = live or [max(agents, key=lambda a: a.session_started_ms)]
        more[name] = others
    return [*first.values(), *(agent for agents in more.values() for agent in agents)]


def matches(fleet: Fleet, agent: Agent, wanted: dict[str, str]) -> bool:
    """Whether an agent has all these labels (values as text)."""
    labels = fleet.facts_of(agent).labels
    return all(key in labels and _as_text(labels[key]) == value for key, value in wanted.items())


def of(fleet: Fleet, agent: Agent, fields: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON of an agent, or only some of its fields."""
    node = fleet.nodes[agent.node]
    return agent_view(
        link_pb2.AgentState.FromString(agent.state),
        region=node.region,
        node=node.name,
        connected=fleet.connected(agent),
        trusted=node.trusted,
        fields=fields,
    )


def listed(fleet: Fleet, agent: Agent, fields: frozenset[str]) -> str:
    """`of` as JSON. That of some fields, as lists of all agents ask for them, is kept until the agent changes."""
    if not fields:
        return json.dumps(of(fleet, agent))
    key = (fields, fleet.connected(agent) is not None)
    if agent.listed is None or agent.listed[0] != key:
        agent.listed = (key, json.dumps(of(fleet, agent, fields)))
    return agent.listed[1]


def find(fleet: Fleet, name: str) -> Agent:
    """An agent by instance_uid or agent id.

    Raises:
        NotFound: nobody knows it.
    """
    uid = parse_uid(name)
    if uid is not None and uid in fleet.agents:
        return fleet.agents[uid]
    named = [a for a in rows(fleet) if a.agent_id == name]
    if not named:
        raise NotFound(f"no agent {name} is known")
    return named[0]


def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    """All nodes."""
    return [
        {
            "name": node.name,
            "region": node.region,
            "connected": node.connected,
            "agents": len(node.agents),
            "connected_agents": node.rollup.connected if node.rollup else None,
            "manifest": list(node.manifest) if node.manifest else None,
            "policy_age_s": fleet.policy_age_s(node),
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
        for _, node in sorted(fleet.nodes.items())
    ]


def problems(node: NodeState) -> list[str]:
    """What is not well with a node, in words."""
    found = []
    if node.ahead is not None:
        found.append(f"holds manifest {node.ahead}, which this database never published: see /health")
    if node.unstored is not None:
        found.append(f"reports are not stored since {rfc3339(node.unstored[0])}: {node.unstored[1]}")
    if abs(node.behind_ms) > SKEW_MS:
        word = "behind" if node.behind_ms > 0 else "ahead"
        found.append(f"its clock is {abs(node.behind_ms) / 1000:.1f} s {word}")
    if node.refused:
        found.append(f"{len(node.refused)} of its agents are refused: their states cannot be read")
    return found


def regions(fleet: Fleet) -> list[dict[str, Any]]:
    """All regions, in sums over what their nodes last reported; nodes that are away count as unknown."""
    found: dict[str, dict[str, Any]] = {}
    for _, node in sorted(fleet.nodes.items()):
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


def connected_by_region(fleet: Fleet) -> dict[str, int]:
    """For the metric."""
    return {view["name"]: view["connected"] for view in regions(fleet)}


def wanted_labels(terms: list[str]) -> dict[str, str]:
    """`k=v` terms, as `matches` takes them.

    Raises:
        Refused: one is not k=v.
    """
    wanted = {}
    for term in terms:
        key, equals, value = term.partition("=")
        if not equals:
            raise Refused([Problem("request", 0, "label", f"{term!r} is not k=v")])
        wanted[key] = value
    return wanted


_PACKAGE_STATES = {
    pb.PackageStatusEnum_Installed: "installed",
    pb.PackageStatusEnum_InstallPending: "installing",
    pb.PackageStatusEnum_Installing: "installing",
    pb.PackageStatusEnum_InstallFailed: "failed",
    pb.PackageStatusEnum_Downloading: "downloading",
}


def package_status(fleet: Fleet, wanted: dict[str, str]) -> dict[str, Any]:
    """`{packages: [{package, version, region, installed, installing, downloading, failed}], agents: [{agent, region,
    package, version, offered, state, percent, error_message}]}`; of the agents those that have something to tell.

    Args:
        wanted: labels of the agents that count.
    """
    sums: dict[tuple[str, str, str], Counter[str]] = {}
    telling = []
    for agent in rows(fleet):
        if not agent.reports(PACKAGES) or (wanted and not matches(fleet, agent, wanted)):
            continue
        region = fleet.nodes[agent.node].region
        state = link_pb2.AgentState.FromString(agent.state)
        reported = pb.PackageStatuses.FromString(state.package_statuses)
        for name, status in sorted(reported.packages.items()):
            word = _PACKAGE_STATES.get(status.status, "installing")
            version = status.agent_has_version if word == "installed" else status.server_offered_version
            sums.setdefault((name, version, region), Counter())[word] += 1
            if word != "installed":
                telling.append(
                    {
                        "agent": agent.agent_id,
                        "region": region,
                        "package": name,
                        "version": status.agent_has_version,
                        "offered": status.server_offered_version,
                        "state": word,
                        "percent": round(status.download_details.download_percent, 1)
                        if word == "downloading"
                        else None,
                        "error_message": status.error_message if word == "failed" else "",
                    }
                )
    words = ("installed", "installing", "downloading", "failed")
    packages = [
        {"package": name, "version": version, "region": region, **{word: counts[word] for word in words}}
        for (name, version, region), counts in sorted(sums.items())
    ]
    return {"packages": packages, "agents": telling}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value).decode()

"""What agents say of packages: counted for all, told of those that are not there yet."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from relay.control.fleet import query
from relay.control.fleet.census import Census
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.published import PACKAGES

MOST_NAMED = 1_000
"""Agents that an answer names where it counts all."""
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

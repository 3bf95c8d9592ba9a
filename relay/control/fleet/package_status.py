"""Package statuses: counts over all agents, and details of packages that are not installed yet."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from relay.control.fleet import query
from relay.control.fleet.census import Census
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy.published import PACKAGES

MAX_NAMED = 1_000
"""An answer counts all agents, and lists at most this many."""
_PACKAGE_STATES = {
    pb.PackageStatusEnum_Installed: "installed",
    pb.PackageStatusEnum_InstallPending: "installing",
    pb.PackageStatusEnum_Installing: "installing",
    pb.PackageStatusEnum_InstallFailed: "failed",
    pb.PackageStatusEnum_Downloading: "downloading",
}


class _Package(NamedTuple):
    """What an agent reports about one package."""

    package: str
    state: str
    version: str
    """The installed version, or the one to be installed."""
    details: dict[str, Any]
    """The progress of a package that is not installed yet."""


def package_status(census: Census, labels: query.Labels, scopes: query.Scopes = ()) -> dict[str, Any]:
    """Summarise package statuses by package and region, and list agents that have not finished installing.

    Args:
        labels: only agents with all of these labels count.
        scopes: and with all of one of these, if there are any.

    Returns:
        `{packages: [{package, version, region, installed, installing, downloading, failed}], agents: [{agent, region,
        package, version, offered, state, percent, error_message}], agents_total}`; `agents` has up to `MAX_NAMED` entries.
    """
    sums: dict[tuple[str, str, str], Counter[str]] = {}
    unfinished: list[dict[str, Any]] = []
    total = 0
    parsed: dict[bytes, list[_Package]] = {}
    for agent in census.visible():
        if not agent.reports(PACKAGES) or not query.has_labels(agent, labels, scopes):
            continue
        if agent.package_statuses not in parsed:  # many agents report the same
            parsed[agent.package_statuses] = _parse(agent.package_statuses)
        region = agent.profile.region
        for one in parsed[agent.package_statuses]:
            sums.setdefault((one.package, one.version, region), Counter())[one.state] += 1
            if one.state != "installed":
                total += 1
                if len(unfinished) < MAX_NAMED:
                    unfinished.append(
                        {"agent": agent.agent_id, "region": region, "package": one.package, **one.details}
                    )
    states = ("installed", "installing", "downloading", "failed")
    packages = [
        {"package": name, "version": version, "region": region, **{state: counts[state] for state in states}}
        for (name, version, region), counts in sorted(sums.items())
    ]
    return {"packages": packages, "agents": unfinished, "agents_total": total}


def _parse(statuses: bytes) -> list[_Package]:
    result = []
    for name, status in sorted(pb.PackageStatuses.FromString(statuses).packages.items()):
        state = _PACKAGE_STATES.get(status.status, "installing")
        details = {
            "version": status.agent_has_version,
            "offered": status.server_offered_version,
            "state": state,
            "percent": round(status.download_details.download_percent, 1) if state == "downloading" else None,
            "error_message": status.error_message if state == "failed" else "",
        }
        version = status.agent_has_version if state == "installed" else status.server_offered_version
        result.append(_Package(name, state, version, details))
    return result

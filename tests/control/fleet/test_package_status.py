"""Package statuses of made-up agents."""

from __future__ import annotations

from typing import Any

import pytest

from relay.control.fleet import package_status as module
from relay.control.fleet.package_status import package_status
from relay.opamp import capabilities
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.control.fleet.test_census import Stand


def said(stand: Stand, name: str, status: int, *, has: str = "", offered: str = "2", **more: Any) -> None:
    agent = stand.put(name, **more)
    agent.capabilities |= capabilities.REPORTS_PACKAGE_STATUSES
    statuses = pb.PackageStatuses()
    one = statuses.packages["tool"]
    one.agent_has_version, one.server_offered_version, one.error_message = has, offered, "no room"
    one.status = status  # type: ignore[assignment]
    one.download_details.download_percent = 12.34
    agent.package_statuses = statuses.SerializeToString()


def test_status_counts_agents_and_names_unfinished_ones() -> None:
    stand = Stand()
    said(stand, "a", pb.PackageStatusEnum_Installed, has="2", tier="x")
    said(stand, "b", pb.PackageStatusEnum_Installed, has="2", region="us")
    said(stand, "c", pb.PackageStatusEnum_InstallFailed, has="1")
    said(stand, "d", pb.PackageStatusEnum_Downloading, tier="x")
    stand.put("e")
    found = package_status(stand.census, frozenset())
    none = {"installed": 0, "installing": 0, "downloading": 0, "failed": 0}
    assert found["packages"] == [
        {"package": "tool", "version": "2", "region": "eu", **none, "installed": 1, "failed": 1, "downloading": 1},
        {"package": "tool", "version": "2", "region": "us", **none, "installed": 1},
    ]
    told = [(a["agent"], a["version"], a["state"], a["percent"], a["error_message"]) for a in found["agents"]]
    assert told == [("c", "1", "failed", None, "no room"), ("d", "", "downloading", 12.3, "")]
    assert found["agents_total"] == 2
    some = package_status(stand.census, frozenset({("tier", "x")}))
    assert [a["agent"] for a in some["agents"]] == ["d"]


def test_many_agents_are_counted_and_some_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMED", 2)
    stand = Stand()
    for number in range(5):
        said(stand, f"a{number}", pb.PackageStatusEnum_Installing)
    found = package_status(stand.census, frozenset())
    assert (len(found["agents"]), found["agents_total"], found["packages"][0]["installing"]) == (2, 5, 5)

"""Health of a control plane, and when it refuses changes, through the admin API."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from relay.errors import StoreError
from tests.cli.run import run
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.api.client import ask


def documents(*texts: str) -> dict[str, Any]:
    return {"sources": [{"source": "t", "text": "".join(texts)}]}


async def test_older_database_changes_nothing_until_the_epoch_is_raised(programs: Programs) -> None:
    folder, aside = programs.folder / "control-plane", programs.folder / "aside"
    plane = await programs.control_plane()
    ports = plane.ports
    await programs.stop(plane)
    shutil.copytree(folder, aside)
    plane = await programs.control_plane(link=ports["link"], api=ports["api"])
    await apply(plane, TEMPLATE, assignment("a", rate=7))
    node = await programs.node(ports["link"])
    await eventually(lambda: node.policy.accepted)
    await programs.stop(plane)
    shutil.rmtree(folder)
    aside.rename(folder)
    empty = await programs.control_plane(link=ports["link"], api=ports["api"])
    await eventually(lambda: node.policy.receiver.ahead_of == (1, 0))
    status, health = await ask(empty, "GET", "/health")
    assert (status, health["status"]) == (200, "degraded")
    assert "holds manifest [1, 1]" in health["degraded"][0]
    assert any("newer than the control plane's" in line for line in node.condition().status["degraded"])
    status, refused = await ask(empty, "POST", "/api/v1/apply", documents(TEMPLATE))
    assert status == 409
    assert "epoch raise" in refused["detail"]
    (shown,) = (await ask(empty, "GET", "/api/v1/nodes"))[1]
    assert "never published" in shown["problems"][0]
    assert node.policy.receiver.version == (1, 1), "it serves what it has"
    assert (await ask(empty, "POST", "/api/v1/epoch", {}))[0] == 422
    assert await ask(empty, "POST", "/api/v1/epoch", {"reason": "new start"}) == (200, {"epoch": 2})
    # At once, even while the node is away: its policy belongs to a past epoch.
    assert (await ask(empty, "POST", "/api/v1/apply", documents(TEMPLATE)))[0] == 200
    await eventually(lambda: node.policy.receiver.version == (2, 1))
    assert (await ask(empty, "POST", "/api/v1/apply", documents(TEMPLATE, assignment("a"))))[0] == 200
    await eventually(lambda: node.policy.receiver.version == (2, 2))
    assert (await ask(empty, "GET", "/health"))[1] == {"status": "ok"}
    entries = (await ask(empty, "GET", "/api/v1/audit"))[1]
    assert any(e["action"] == "raise-epoch" and e["reason"] == "new start" for e in entries)


async def test_unwritable_database_is_reported_until_it_recovers(programs: Programs) -> None:
    plane = await programs.control_plane()
    database = plane.database
    path = programs.folder / "control-plane" / "control-plane.sqlite3"
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    database._engine.dialect  # noqa: B018
    other.execute("BEGIN IMMEDIATE")
    probing = asyncio.create_task(database.probe())
    await asyncio.wait([probing], timeout=15)
    assert await ask(plane, "GET", "/ready") == (503, {"ready": False, "reason": "database: database is locked"})
    assert (await ask(plane, "GET", "/health"))[1]["degraded"] == ["database: database is locked"]
    shown = await run("opampctl", "get", "agents", OPAMPCTL_SERVER=f"http://127.0.0.1:{plane.ports['api']}")
    assert (shown.status, shown.err) == (0, "warning: the data may be out of date: database: database is locked\n")
    other.execute("ROLLBACK")
    other.close()
    await database.probe()
    assert (await ask(plane, "GET", "/ready"))[0] == 200


async def test_database_replaced_while_open_takes_no_changes(programs: Programs) -> None:
    plane = await programs.control_plane()
    path = programs.folder / "control-plane" / "control-plane.sqlite3"
    await asyncio.to_thread(_replace, path)
    status, refused = await ask(plane, "POST", "/api/v1/apply", documents(TEMPLATE))
    assert (status, "was replaced or deleted" in refused["detail"]) == (503, True)
    await plane.database.probe()
    assert "was replaced or deleted" in (await ask(plane, "GET", "/health"))[1]["degraded"][0]


def _replace(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.write_bytes(b"")


async def test_removed_wal_is_noticed_and_deleted_lock_still_holds(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE)
    folder = programs.folder / "control-plane"
    (folder / ".lock").unlink()
    if sys.platform == "linux":
        with pytest.raises(StoreError, match="another process is using this data folder"):
            await programs.opened()
    (folder / "control-plane.sqlite3-wal").unlink()
    await plane.database.probe()
    assert "was replaced or deleted" in (await ask(plane, "GET", "/health"))[1]["degraded"][0]
    assert (await ask(plane, "POST", "/api/v1/apply", documents(TEMPLATE, assignment("a"))))[0] == 503

"""Third-party clients: each connects, gets its config, reports it applied, and survives a restart of the node.

Some need Go or Node.js: the test is skipped if the tool is missing. CI skips none.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.node.app import Node
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.reports import shown
from tests.control.texts import strategy
from tests.packages import package_assignment, push
from tests.tools import need

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]
HERE = Path(__file__).parent


def go_agent() -> list[str]:
    need("go")
    built = HERE / "bin" / "goagent"
    subprocess.run(["go", "build", "-o", str(built), "."], cwd=HERE / "go", check=True, capture_output=True)
    return [str(built)]


def node_agent() -> list[str]:
    need("node", "npm")
    folder = HERE / "node"
    if not (folder / "node_modules" / "@elastic").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return ["node", str(folder / "agent.mjs")]


def python_agent() -> list[str]:
    return [sys.executable, str(HERE / "python_agent.py")]


class Client:
    """A running client and its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, event: str) -> dict[str, Any]:
        """Wait for an event, skipping others."""
        assert self._process.stdout is not None
        async with asyncio.timeout(45):
            while True:
                line = await self._process.stdout.readline()
                assert line, "the client ended"
                said: dict[str, Any] = json.loads(line)
                if said["event"] == event:
                    return said


@asynccontextmanager
async def client(command: list[str], *args: str) -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        *command, *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Client(process)
        assert process.returncode is None, "the client died"
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def args_for(kind: str, url: str) -> list[str]:
    return ["-endpoint", url, "-name", "theirs"] if kind == "go" else [url, "theirs"]


@pytest.mark.parametrize(
    ("kind", "prepare", "scheme"),
    [("go", go_agent, "ws"), ("go", go_agent, "http"), ("python", python_agent, "http"), ("node", node_agent, "http")],
)
async def test_client_gets_its_config_and_survives_a_restart(
    programs: Programs, kind: str, prepare: Callable[[], list[str]], scheme: str
) -> None:
    command = await asyncio.to_thread(prepare)
    plane = await programs.control_plane()
    selector = "{labels: {tier: production}}"
    await apply(plane, TEMPLATE, assignment("all", priority=1, selector=selector, rate=1))
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    url = f"{scheme}://127.0.0.1:{node.ports['websocket']}/v1/opamp"

    def applied(running: Node, config_hash: str) -> bool:
        record = next((r for r in running.registry if r.agent_id == "theirs"), None)
        status = record.config_status() if record else None
        return bool(status and status.last_remote_config_hash.hex() == config_hash and status.status == 1)

    async with client(command, *args_for(kind, url)) as theirs:
        offered = await theirs.says("config")
        await eventually(lambda: applied(node, offered["hash"]))
        ports = node.ports
        await programs.stop(node)
        node = await programs.node(plane.ports["link"], ports=ports)
        await apply(plane, assignment("all", priority=1, selector=selector, rate=2))
        second = await theirs.says("config")
        assert second["hash"] != offered["hash"]
        await eventually(lambda: applied(node, second["hash"]), 40)
        agent = await eventually(lambda: next(iter(plane.fleet.census.agents.values()), None))
        assert agent.facts.labels["tier"] == "production"
        assert node.metrics.full_state_requests <= 1, "no loop of requests"
        assert not node.metrics.bad_messages


async def test_opamp_go_failure_message_arrives(programs: Programs) -> None:
    command = await asyncio.to_thread(go_agent)
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("all", rate=13))
    node = await programs.node(plane.ports["link"])
    url = f"ws://127.0.0.1:{node.ports['http']}/v1/opamp"
    async with client(command, "-endpoint", url, "-name", "theirs") as theirs:
        await theirs.says("config")

        async def failed() -> bool:
            if not plane.fleet.census.by_id("theirs"):
                return False
            view = await shown(plane.fleet, "theirs")
            return bool(view["config"]["error_message"] == "thirteen is not a rate")

        await eventually(failed)
    await eventually(lambda: not next(iter(plane.fleet.census.agents.values())).connected)


async def test_opamp_go_package_syncer_installs_fails_and_goes_back(programs: Programs, tmp_path: Path) -> None:
    command = await asyncio.to_thread(go_agent)
    plane = await programs.control_plane()
    node = await programs.node(plane.ports["link"])
    content = os.urandom(5_000_000)
    await push(plane, content)
    await push(plane, b"poison", version="2")
    await push(plane, b"plugin", name="plugin", piece=1)
    await apply(plane, package_assignment())
    url = f"ws://127.0.0.1:{node.ports['websocket']}/v1/opamp"
    folder = tmp_path / "installed"
    folder.mkdir()
    options = ["-endpoint", url, "-name", "theirs", "-packages", str(folder)]

    def offering() -> Any:
        agents = list(plane.fleet.census.agents.values())
        return agents[0].packages if agents else None

    async with client(command, *options) as theirs:
        first = await theirs.says("packages")
        await eventually(lambda: offering() and offering().status == "APPLIED", 30)
        assert (folder / "otelcol").read_bytes() == content
        both = package_assignment().replace("]\n", ", {name: plugin, version: '1'}]\n")
        await apply(plane, both)
        assert (await theirs.says("packages"))["hash"] != first["hash"]
        await eventually(lambda: (folder / "plugin").exists(), 40)
        await eventually(lambda: offering().status == "APPLIED", 40)
        assert node.serving.downloads.sent_bytes == len(content) + len(b"plugin"), "what it has is not downloaded again"
        await apply(plane, strategy("name: all, percentage: 100"), package_assignment("2", strategy="canary"))

        async def rolled_back() -> bool:
            return bool((await plane.status.of("agents-3"))["state"] == "rolled_back")

        await eventually(rolled_back, 60)
        assert offering().failures[0].error_message.endswith("poison is not for me")
        await eventually(lambda: offering().status == "APPLIED", 40)
        assert (folder / "otelcol").read_bytes() == content
        assert node.metrics.package_updates["failure"] == 1

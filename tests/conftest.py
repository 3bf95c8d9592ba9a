"""Fixtures shared by all tests: uvloop as in production, and programs on free ports."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import settings

from relay.aio.clock import Clock
from relay.control.app import ControlPlane
from relay.node.app import Node
from relay.node.joining import identified
from relay.settings.programs import ControlPlaneSettings, NodeSettings
from tests.wire import close_what_is_left

settings.register_profile("fast", max_examples=100, deadline=None)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
WITHIN_S = 10.0
"""The longest wait for an eventual condition."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def loop_errors() -> AsyncIterator[None]:
    """Fail the test on exceptions that reach only the event loop."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    yield
    await close_what_is_left()
    # gRPC's queue is woken once too often now and then, and finds nothing.
    errors = [context for context in seen if not isinstance(context.get("exception"), BlockingIOError)]
    assert not errors, errors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Watch the loop of every asynchronous test."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "loop_errors")


async def eventually(check: Callable[[], Any | Awaitable[Any]], within_s: float = WITHIN_S) -> Any:
    """Wait until `check` returns a true value; return that value."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        value = check()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < deadline, f"{check} did not come true in {within_s} s"
        await asyncio.sleep(0.02)


class Programs:
    """Starts control planes and nodes on free ports; the fixture stops those still running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[ControlPlane | Node] = []

    async def control_plane(self, **more: Any) -> ControlPlane:
        program = self._control_plane(**more)
        await program.start()
        self._running.append(program)
        return program

    async def opened(self, **more: Any) -> ControlPlane:
        """A control plane without ports and background tasks."""
        program = self._control_plane(**more)
        await program.open()
        self._running.append(program)
        return program

    def _control_plane(self, *, link: int = 0, api: int = 0, clock: Clock | None = None, **more: Any) -> ControlPlane:
        told = ControlPlaneSettings.model_validate(
            {
                "data_dir": str(self.folder / "control-plane"),
                "server": {
                    "link": {"endpoint": f"127.0.0.1:{link}"},
                    "api": {"endpoint": f"127.0.0.1:{api}"},
                },
                "telemetry": {"metrics": {"endpoint": "127.0.0.1:0"}},
                **more,
            }
        )
        return ControlPlane(told, clock)

    async def node(
        self,
        upstream: int = 1,
        *,
        name: str = "one",
        region: str = "local",
        ports: dict[str, int] | None = None,
        clock: Clock | None = None,
        join: str | None = None,
        **more: Any,
    ) -> Node:
        """Start a node; `upstream` is the port of its control plane (1: none). With `join`, a token or nothing, it joins."""
        fixed = ports or {}
        server: dict[str, Any] = {
            "websocket": {"endpoint": f"127.0.0.1:{fixed.get('websocket', 0)}"},
            "http": {"endpoint": f"127.0.0.1:{fixed.get('http', 0)}"},
            "grpc": {"endpoint": f"127.0.0.1:{fixed.get('grpc', 0)}"},
            "batching": {"timeout": 0.05},
        }
        for key, value in more.pop("server", {}).items():
            server[key] = {**server.get(key, {}), **value}
        told = NodeSettings.model_validate(
            {
                "node": {
                    "region": region,
                    "name": name,
                    "data_dir": str(self.folder / f"node-{region}-{name}"),
                    **more.pop("node", {}),
                },
                "control_plane": more.pop("control_plane", {"endpoint": f"127.0.0.1:{upstream}"}),
                "server": server,
                "telemetry": {"metrics": {"endpoint": "127.0.0.1:0"}},
                "drain": {"seconds": 0},
                **more,
            }
        )
        identity = None
        if join is not None:
            told, identity = await identified(told, join, frozenset({"node.name"}))
        program = Node(told, clock, identity=identity)
        await program.start()
        self._running.append(program)
        return program

    async def node_with_policy(self, **more: Any) -> Node:
        """Start a node, and a control plane whose policy, an empty one, it has accepted."""
        control_plane = await self.control_plane()
        node = await self.node(control_plane.ports["link"], **more)
        await eventually(lambda: node.policy.accepted)
        return node

    async def stop(self, program: ControlPlane | Node) -> None:
        self._running.remove(program)
        await program.stop()

    async def stop_all(self) -> None:
        for program in reversed(self._running):
            await program.stop()
        self._running.clear()


@pytest.fixture
async def programs(tmp_path: Path) -> AsyncIterator[Programs]:
    started = Programs(tmp_path)
    yield started
    await started.stop_all()


TEMPLATE = """
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: basic, version: v1}
spec:
  variables:
    - {name: level, type: string, default: info}
    - {name: rate, type: int, default: 1, min: 0, max: 100}
  config:
    service: {telemetry: {logs: {level: "{{.level}}"}}}
    rate: "{{.rate}}"
"""


def assignment(
    name: str, *, rate: int = 1, priority: int = 0, selector: str = "{}", slot: str = "", version: str = "v1"
) -> str:
    """A ConfigAssignment that uses the basic template."""
    return f"""---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: {name}}}
spec:
  template: {{name: basic, version: {version}}}
  values: {{rate: {rate}}}
  target_selector: {selector}
  priority: {priority}
  slot: "{slot}"
"""


async def apply(control_plane: ControlPlane, *texts: str) -> None:
    """Apply documents, as the API does."""
    await control_plane.documents.apply([("test", "".join(texts))])

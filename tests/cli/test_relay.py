"""The servers as processes: start, kill -9, signals, settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from relay import __version__
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.cli.run import BIN, run
from tests.conftest import TEMPLATE, assignment
from tests.wire import TestAgent


@asynccontextmanager
async def process(*args: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, int]]]:
    """A running `opamp-relay`, with its ports read from its log."""
    running = await asyncio.create_subprocess_exec(
        str(BIN / "opamp-relay"), *args, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert running.stderr is not None
    ports: dict[str, int] = {}
    try:
        async with asyncio.timeout(20):
            while True:
                line = (await running.stderr.readline()).decode()
                assert line, "it ended"
                ports.update((name, int(port)) for name, port in re.findall(r'"(\w+)":(\d+)', line))
                if '"node_started"' in line or '"control_plane_started"' in line:
                    break
        yield running, ports
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


def node_args(folder: Path, upstream: int) -> list[str]:
    return [
        "node", "--data", str(folder / "node"), "--control-plane", f"127.0.0.1:{upstream}",
        *(f"--{name}=127.0.0.1:0" for name in ("websocket", "http", "grpc", "metrics")),
    ]  # fmt: skip


def plane_args_of(folder: Path) -> list[str]:
    return ["control-plane", "--data", str(folder / "plane"), "--metrics=127.0.0.1:0"]


def free_ports(count: int) -> list[int]:
    """Free ports that a program can reuse after each restart."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


async def test_kill_9_of_either_program_loses_nothing(tmp_path: Path) -> None:
    plane_args = plane_args_of(tmp_path)
    policy = tmp_path / "policy.yaml"
    policy.write_text(TEMPLATE + assignment("all", rate=6))
    async with process(*plane_args, "--link=127.0.0.1:0", "--api=127.0.0.1:0") as (plane, plane_ports):
        server = f"http://127.0.0.1:{plane_ports['api']}"
        assert (await run("opampctl", "apply", "-f", str(policy), "--server", server)).status == 0
        async with process(*node_args(tmp_path, plane_ports["link"])) as (node, ports):
            agent = await TestAgent.over("websocket", ports, "a")
            answer = await agent.hello()
            while not answer.HasField("remote_config"):
                answer = await agent.pipe.pushed()
            plane.kill()
            await plane.wait()
            await agent.applied(answer.remote_config.config_hash)
            new = await TestAgent.over("websocket", ports, "new")
            assert b"rate: 6" in (await new.hello()).remote_config.config.config_map[""].body
            await asyncio.sleep(0.6)
            node.kill()
            await node.wait()
            await agent.close()
            await new.close()
    async with process(*node_args(tmp_path, 1)) as (_, ports):
        again = await TestAgent.over("websocket", ports, "a", uid=agent.uid)
        again.sequence = agent.sequence + 5
        assert (await again.heartbeat()).flags == pb.ServerToAgentFlags_ReportFullState
        status = pb.RemoteConfigStatus(
            last_remote_config_hash=answer.remote_config.config_hash, status=pb.RemoteConfigStatuses_APPLIED
        )
        assert not (await again.hello(status)).HasField("remote_config"), "it serves from its disk"
        await again.close()


async def test_a_rollout_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    stages = ", ".join(f"{{name: s{i}, percentage: {p}, duration: 1s}}" for i, p in enumerate((10, 40, 70, 100)))
    strategy = (
        "---\napiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {name: canary}\n"
        f"spec: {{stages: [{stages}], failure_policy: {{action: pause}}}}\n"
    )
    ports = free_ports(2)
    plane_args = [*plane_args_of(tmp_path), f"--link=127.0.0.1:{ports[0]}", f"--api=127.0.0.1:{ports[1]}"]
    server = f"http://127.0.0.1:{ports[1]}"

    async def status() -> dict[str, Any]:
        done = await run("opampctl", "rollout", "status", "a-2", "-o", "json", OPAMPCTL_SERVER=server)
        return dict(json.loads(done.out)) if done.status == 0 else {"state": "unreachable", "stages": []}

    async with process(*node_args(tmp_path, ports[0])) as (_, node_ports):
        agents = [await TestAgent.over("websocket", node_ports, f"a{i}") for i in range(20)]
        async with process(*plane_args):
            text = TEMPLATE + strategy + assignment("a")
            assert (await run("opampctl", "apply", "-f", "-", stdin=text, OPAMPCTL_SERVER=server)).status == 0
            await asyncio.sleep(1)
        living = [asyncio.create_task(obey(agent)) for agent in agents]
        async with process(*plane_args):
            changed = assignment("a", rate=2) + "  strategy: canary\n"
            assert (await run("opampctl", "apply", "-f", "-", stdin=changed, OPAMPCTL_SERVER=server)).status == 0
        for pause in (0.3, 0.7, 1.1, 1.6):
            async with process(*plane_args) as (plane, _):
                await asyncio.sleep(pause)
                plane.kill()
        async with process(*plane_args):
            for _ in range(60):
                found = await status()
                if found["state"] == "completed":
                    break
                await asyncio.sleep(0.5)
            verified = await run("opampctl", "audit", "verify", OPAMPCTL_SERVER=server)
        assert found["state"] == "completed", found
        assert [s["state"] for s in found["stages"]] == ["passed"] * 4, "each once, in order"
        begun = [s["started"] for s in found["stages"]]
        assert begun == sorted(begun)
        assert [s["counts"]["applied"] for s in found["stages"]] == [2, 8, 14, 20]
        assert "intact" in verified.out
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)
        for agent in agents:
            await agent.close()


async def obey(agent: TestAgent) -> None:
    """Apply every offered config until cancelled."""
    answer = await agent.hello()
    while True:
        while answer.HasField("remote_config"):
            answer = await agent.applied(answer.remote_config.config_hash, healthy=True)
        with contextlib.suppress(TimeoutError):
            answer = await agent.pipe.pushed()


async def test_signals_stop_programs_cleanly(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        config = tmp_path / "relay.yaml"
        config.write_text("drain: {seconds: 0}\n")
        async with process(*node_args(tmp_path, 1), "-c", str(config)) as (node, _):
            node.send_signal(number)
            async with asyncio.timeout(10):
                assert await node.wait() == 0


async def test_settings_problems_are_all_printed_and_exit_2(tmp_path: Path) -> None:
    config = tmp_path / "relay.yaml"
    config.write_text("node: {regoin: x}\nserver: {http: {endpoint: nonsense}}\n")
    done = await run("opamp-relay", "node", "-c", str(config))
    assert done.status == 2
    assert f"{config}:1: node.regoin: unknown key" in done.err
    assert f"{config}:2: server.http.endpoint: 'nonsense' is not HOST:PORT" in done.err


async def test_port_in_use_prints_one_line_and_exits_1(tmp_path: Path) -> None:
    async with process(*node_args(tmp_path, 1)) as (_, ports):
        taken = [*node_args(tmp_path / "other", 1), f"--websocket=127.0.0.1:{ports['websocket']}"]
        done = await run("opamp-relay", *taken)
        assert done.status == 1
        assert (
            "address already in use by another process: set server.websocket.endpoint, or --websocket HOST:PORT"
            in done.err
        )
        assert "Traceback" not in done.err


async def test_version() -> None:
    assert (await run("opamp-relay", "version")).out == f"{__version__}\n"

import asyncio
import random
from pathlib import Path

import pytest

from relay.cli.simulate import Narrator, TlsFiles, run_simulation
from relay.testing.agents import fleet
from relay.testing.certificates import Authority
from tests.cli.run import run
from tests.conftest import Programs, eventually


def test_narrator_prints_one_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator()
    (agent,) = fleet(1, prefix="demo", chance=random.Random(1))
    narrator.on_event(agent, "received", "abcdef" * 10)
    narrator.on_event(agent, "failed", "no such receiver")
    out = capsys.readouterr().out
    assert (
        out
        == "  demo-0001    gateway  received config abcdefabcdef\n  demo-0001    gateway  FAILED: no such receiver\n"
    )
    assert (
        narrator.summary()
        == "connected 0  received 1  applied 0  failed 1  installed 0  not_installed 0  disconnected 0  unreachable 0"
    )


async def test_agents_run_until_they_are_stopped(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    node = await programs.node()
    stop = asyncio.Event()
    url = f"ws://127.0.0.1:{node.ports['websocket']}/v1/opamp"
    running = asyncio.create_task(run_simulation(stop, 5, url, heartbeat_s=1, prefix="s", seed=1, quiet=True))
    await eventually(lambda: node.hub.connected == 5)
    await asyncio.sleep(1.2)
    stop.set()
    assert await running == 0
    assert "connected 5" in capsys.readouterr().err


async def test_agents_with_a_certificate(programs: Programs, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("node"), authority.issue("agent-001")
    tls = {"enabled": True, "cert_file": str(server.cert_file), "key_file": str(server.key_file)}
    node = await programs.node_with_policy(
        server={"tls": {**tls, "client_ca_file": str(authority.ca_file)}}, auth={"type": "mtls"}
    )
    stop = asyncio.Event()
    files = TlsFiles(str(authority.ca_file), str(client.cert_file), str(client.key_file))
    url = f"wss://localhost:{node.ports['websocket']}/v1/opamp"
    running = asyncio.create_task(
        run_simulation(stop, 2, url, heartbeat_s=1, prefix="s", seed=1, quiet=True, files=files)
    )
    await eventually(lambda: node.hub.connected == 2)
    assert {r.credential.subject for r in node.registry if r.credential is not None} == {"agent-001"}
    stop.set()
    assert await running == 0


async def test_refused_polls_are_told_once(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    node = await programs.node()
    stop = asyncio.Event()
    url = f"http://127.0.0.1:{node.ports['http']}/nowhere"
    running = asyncio.create_task(run_simulation(stop, 1, url, heartbeat_s=0.05, prefix="s", seed=1, quiet=False))
    await asyncio.sleep(0.5)
    stop.set()
    await running
    assert capsys.readouterr().out.count("status 404") == 1


async def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    endpoint = "wss://127.0.0.1:1/v1/opamp"
    done = await run("opamp-relay", "simulate", "--endpoint", endpoint, "--cert", str(tmp_path / "none"))
    assert (done.status, "--cert, --key, --ca:" in done.err) == (2, True)

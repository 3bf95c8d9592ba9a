import asyncio
import random

import pytest

from relay.cli.simulate import Narrator, run_simulation
from relay.testing.agents import fleet
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

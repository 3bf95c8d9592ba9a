import asyncio
from pathlib import Path

import pytest

from relay.cli.standalone import run_standalone, sample_policy
from relay.settings.programs import StandaloneSettings

ROOT = Path(__file__).parent.parent.parent


def settings(folder: Path) -> StandaloneSettings:
    ports = {name: {"endpoint": "127.0.0.1:0"} for name in ("websocket", "http", "grpc", "api")}
    from socket import socket

    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        link = probe.getsockname()[1]
    return StandaloneSettings.model_validate(
        {
            "data_dir": str(folder),
            "server": {**ports, "link": {"endpoint": f"127.0.0.1:{link}"}},
            "telemetry": {"metrics": {"endpoint": "127.0.0.1:0"}},
        }
    )


async def test_demo_shows_agents_and_next_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for expected in ("Applied the sample policy", "The policy of an earlier run is in force"):
        stop = asyncio.Event()
        running = asyncio.create_task(run_standalone(settings(tmp_path), stop, demo=True))
        out = ""
        async with asyncio.timeout(20):
            while "Press Ctrl-C to stop." not in out:
                await asyncio.sleep(0.1)
                out += capsys.readouterr().out
        stop.set()
        assert await running == 0
        assert expected in out
        assert out.count("applied config") == 20
        assert "opampctl get agents" in out


async def test_standalone_starts_and_stops_without_the_demo(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    assert await run_standalone(settings(tmp_path), stop, demo=False) == 0


def test_sample_policy_exists_only_in_the_project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sample_policy() == []


async def test_failure_demo_is_rolled_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    stop = asyncio.Event()
    running = asyncio.create_task(run_standalone(settings(tmp_path), stop, demo=True, failure=True))
    out = ""
    async with asyncio.timeout(60):
        while "rollout production-2 rolled back: stage canary failed" not in out:
            await asyncio.sleep(0.1)
            out += capsys.readouterr().out
    stop.set()
    assert await running == 0
    assert "FAILED: service::pipelines::traces: references exporter 'otlphttp' which is not configured" in out

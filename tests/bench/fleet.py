"""A control plane on one core; on the other, a hundred regions of nodes that only report (see `regions.py`).

Answers are timed at the API, or with `opampctl` for commands that people wait for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.bench.programs import BIN, NODE_CORE, Client, Row, control_plane, get, resident_kib, running

_TICKS_S = os.sysconf("SC_CLK_TCK")
_LONG_S = 900

TEMPLATE = """
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: edge, version: v1}
spec:
  variables: [{name: rate, type: int, default: 1}]
  config: {receivers: {otlp: {protocols: {grpc: {}}}}, rate: "{{.rate}}"}
---
apiVersion: opamp.io/v1
kind: RolloutStrategy
metadata: {name: slow}
spec:
  stages:
    - {name: canary, percentage: 1, duration: 10m}
    - {name: all, percentage: 100}
---
"""
ASSIGNMENT = """
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: all}}
spec: {{template: {{name: edge, version: v1}}, values: {{rate: {rate}}}{strategy}}}
"""


class Regions(Client):
    """The process that runs the nodes."""

    def __init__(self, agents: int) -> None:
        super().__init__(sys.executable, "-m", "tests.bench.regions", "--agents", str(agents))


class ReadyProbe:
    """Polls `/ready` while something else runs."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while not self._stopped.wait(0.05):
            began = time.perf_counter()
            urllib.request.urlopen("http://127.0.0.1:4340/ready", timeout=60).read()
            self.durations.append(time.perf_counter() - began)

    def __enter__(self) -> ReadyProbe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def figure(self) -> str:
        durations = sorted(self.durations) or [0.0]
        return f"p99 {durations[int(len(durations) * 0.99)] * 1000:.0f} ms, longest {durations[-1] * 1000:.0f} ms"


def measure(folder: Path, agents: int) -> list[Row]:
    """All figures for this number of agents."""
    large = agents >= 1_000_000
    folder = folder / "fleet"
    folder.mkdir()
    rows: list[Row] = []
    plane = control_plane(folder, NODE_CORE)
    try:
        time.sleep(1)
        before = resident_kib(plane.pid)
        regions = Regions(agents)
        with running(regions.process):
            seconds = regions.line("taken")["seconds"]
            growth = resident_kib(plane.pid) - before
            total = f"{(growth + before) / 1024:,.0f} MiB in total"
            rows.append(Row(f"{agents:,} agents: control plane memory per agent", f"{growth / agents:.2f} KiB; {total}",
                            "<= 2 GB in total" if large else "<= 1.2 KB"))  # fmt: skip
            rows.append(Row("  agents accepted", f"{agents / seconds:,.0f}/s", ">= 6,000/s" if large else ">= 8,000/s"))
            time.sleep(5)
            regions.ask("acks")
            with ReadyProbe() as ready_probe:
                rows += _command_rows(plane, agents, regions, large=large)
            rows.append(Row("  /ready during all of this", ready_probe.figure, "<= 50 ms"))
            plane.kill()
            plane.wait()
            began = time.monotonic()
            plane = control_plane(folder, NODE_CORE)
            figure = f"{time.monotonic() - began:.1f} s"
            rows.append(Row("  killed and restarted: until /ready", figure, "<= 45 s" if large else "<= 5 s"))
    finally:
        plane.kill()
        plane.wait()
    return rows


def _command_rows(plane: subprocess.Popen[str], agents: int, regions: Regions, *, large: bool) -> list[Row]:
    rows = [
        Row("  opampctl get agents", _command("get", "agents"), "<= 0.6 s" if large else "<= 0.4 s"),
        Row("  opampctl get regions", _command("get", "regions"), "<= 0.3 s"),
        Row("  opampctl get nodes", _command("get", "nodes"), "<= 0.3 s"),
    ]
    before = resident_kib(plane.pid)
    figure = _command("get", "agents", "-o", "json", "--all")
    growth = (resident_kib(plane.pid) - before) / 1024
    rows.append(Row("  opampctl get agents -o json --all", f"{figure}; +{growth:.0f} MiB",
                    "works" if large else "<= 10 s, + <= 50 MB"))  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(TEMPLATE + ASSIGNMENT.format(rate=1, strategy=""))
        file.flush()
        rows.append(Row("  opampctl diff of an assignment for all agents", _command("diff", "-f", file.name),
                        "<= 10 s" if large else "<= 1.5 s"))  # fmt: skip
        acks = [regions.ask("acks")]
        _command("apply", "-f", file.name)
        _until(lambda: get("/api/v1/rollouts/all-1")["state"] == "completed")
        at_once = regions.ask("acks")
        file.seek(0)
        file.truncate()
        file.write(ASSIGNMENT.format(rate=2, strategy=", strategy: slow"))
        file.flush()
        rows.append(Row("  opampctl apply that begins a rollout", _command("apply", "-f", file.name),
                        "<= 10 s" if large else "<= 1.5 s"))  # fmt: skip
    canary = agents // 100
    _until(lambda: get("/api/v1/rollouts/all-2")["stages"][0]["counts"]["applied"] == canary)
    rows.append(
        Row("  opampctl rollout status", _command("rollout", "status", "all-2"), "<= 0.3 s" if large else "<= 0.2 s")
    )
    _command("rollout", "pause", "all-2")
    time.sleep(3)
    paused = _busy(plane, 20)
    _command("rollout", "resume", "all-2")
    time.sleep(3)
    share = _busy(plane, 40) - paused
    figure = f"{share:.0%}; without it {paused:.0%}"
    rows.append(Row("  a running rollout's share of the core", figure, "<= 30 %" if large else "<= 10 %"))
    acks.append(regions.ask("acks"))
    figure = f"p99 {max(a['p99_ms'] for a in acks):.0f} ms; while all agents change at once {at_once['p99_ms']:.0f} ms"
    rows.append(Row("  reports acknowledged meanwhile", figure, "<= 250 ms"))
    return rows


def _command(*words: str) -> str:
    """Run opampctl; return how long it took."""
    began = time.monotonic()
    result = subprocess.run([str(BIN / "opampctl"), *words], capture_output=True, timeout=_LONG_S, check=False)
    duration = time.monotonic() - began
    assert result.returncode in (0, 1), result.stderr
    return f"{duration:.2f} s"


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONG_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(1)


def _busy(process: subprocess.Popen[str], seconds: float) -> float:
    """The share of a core that a process uses."""

    def used_s() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_S

    before = used_s()
    time.sleep(seconds)
    return (used_s() - before) / seconds

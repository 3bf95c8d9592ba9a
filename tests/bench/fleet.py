"""A control plane on one core, and a hundred regions of nodes that only report on the other one (see `regions.py`).

Answers are timed at the API, and at `opampctl` where people wait for it.
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
    """The nodes."""

    def __init__(self, agents: int) -> None:
        super().__init__(sys.executable, "-m", "tests.bench.regions", "--agents", str(agents))


class Beside:
    """Asks `/ready` all the time, while something else goes on."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self._over.wait(0.05):
            began = time.perf_counter()
            urllib.request.urlopen("http://127.0.0.1:4340/ready", timeout=60).read()
            self.took.append(time.perf_counter() - began)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def figure(self) -> str:
        took = sorted(self.took) or [0.0]
        return f"p99 {took[int(len(took) * 0.99)] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"


def measure(folder: Path, agents: int) -> list[Row]:
    """All figures for so many agents."""
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
            grown = resident_kib(plane.pid) - before
            whole = f"{(grown + before) / 1024:,.0f} MiB in all"
            rows.append(Row(f"{agents:,} agents: memory of the control plane an agent", f"{grown / agents:.2f} KiB; {whole}",
                            "<= 2 GB in all" if large else "<= 1.2 KB"))  # fmt: skip
            rows.append(Row("  taken in", f"{agents / seconds:,.0f}/s", ">= 6,000/s" if large else ">= 8,000/s"))
            time.sleep(5)
            regions.ask("acks")
            with Beside() as beside:
                rows += _asked(plane, agents, regions, large=large)
            rows.append(Row("  /ready while all this ran", beside.figure, "<= 50 ms"))
            plane.kill()
            plane.wait()
            began = time.monotonic()
            plane = control_plane(folder, NODE_CORE)
            figure = f"{time.monotonic() - began:.1f} s"
            rows.append(Row("  killed, and started again: until /ready", figure, "<= 45 s" if large else "<= 5 s"))
    finally:
        plane.kill()
        plane.wait()
    return rows


def _asked(plane: subprocess.Popen[str], agents: int, regions: Regions, *, large: bool) -> list[Row]:
    rows = [
        Row("  opampctl get agents", _command("get", "agents"), "<= 0.6 s" if large else "<= 0.4 s"),
        Row("  opampctl get regions", _command("get", "regions"), "<= 0.3 s"),
        Row("  opampctl get nodes", _command("get", "nodes"), "<= 0.3 s"),
    ]
    before = resident_kib(plane.pid)
    figure = _command("get", "agents", "-o", "json", "--all")
    grown = (resident_kib(plane.pid) - before) / 1024
    rows.append(Row("  opampctl get agents -o json --all", f"{figure}; +{grown:.0f} MiB",
                    "works" if large else "<= 10 s, + <= 50 MB"))  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(TEMPLATE + ASSIGNMENT.format(rate=1, strategy=""))
        file.flush()
        rows.append(Row("  opampctl diff of an assignment for everybody", _command("diff", "-f", file.name),
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
    """How long opampctl takes."""
    began = time.monotonic()
    done = subprocess.run([str(BIN / "opampctl"), *words], capture_output=True, timeout=_LONG_S, check=False)
    took = time.monotonic() - began
    assert done.returncode in (0, 1), done.stderr
    return f"{took:.2f} s"


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONG_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(1)


def _busy(process: subprocess.Popen[str], seconds: float) -> float:
    """The share of a core that a process takes."""

    def used_s() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_S

    before = used_s()
    time.sleep(seconds)
    return (used_s() - before) / seconds

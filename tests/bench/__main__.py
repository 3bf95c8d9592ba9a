"""`make bench`: measure the whole path with the programs as shipped, and print the figures as a table.

As shipped means: logs at the default level, written to a pipe that is read; default limits except for connections.

The node is pinned to one core; the control plane and the load client (compiled, see `load/`) share another. The peer is a
minimal server on opamp-go (see `peers/`), pinned to the node's core in the same run: read the ratio, not the number.
Latency is measured from the time a heartbeat was due.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench import credentials, downloads, fleet
from tests.bench.decisions import evaluation_seconds, plan_seconds
from tests.bench.programs import (
    BIN,
    HERE,
    LOAD_CORE,
    NODE_CORE,
    Client,
    Row,
    apply,
    control_plane,
    get,
    log_sink,
    pinned,
    resident_kib,
    running,
    wait_for,
)

AWAY_S = 60
PROBE_S = 2.0
PARTS = ["decisions", "heartbeats", "connects", "memory", "tls", "changes", "packages", "auth", "fleet"]


def node(folder: Path, *more: str) -> subprocess.Popen[str]:
    args = ["node", "--data", str(folder / "node"), *more]
    environment = os.environ | {"OPAMP_RELAY_SERVER__WEBSOCKET__MAX_CONNECTIONS": "20000"}
    with log_sink() as logs:
        process = pinned(NODE_CORE, str(BIN / "opamp-relay"), *args, env=environment, stderr=logs)
    wait_for("http://127.0.0.1:4321/health")
    return process


def probe(seconds: float) -> subprocess.Popen[str]:
    first = ["chrt", "-f", "10"] if os.geteuid() == 0 and shutil.which("chrt") else []
    command = [*first, sys.executable, str(HERE / "probe.py"), "127.0.0.1:4320", str(seconds)]
    return pinned(LOAD_CORE, *command, stdout=subprocess.PIPE)


def metric(name: str) -> float:
    text = urllib.request.urlopen("http://127.0.0.1:8888/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


class Load(Client):
    """The load client in fleet mode."""

    def __init__(self, agents: int, *more: str) -> None:
        super().__init__(str(HERE / "bin" / "load"), "-mode", "fleet", "-agents", str(agents), *more)


def policy(rate: int) -> str:
    return f"""
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {{name: large, version: v1}}
spec:
  variables: [{{name: rate, type: int, default: 1}}]
  config: {{filler: "{"x" * 20_000}", rate: "{{{{.rate}}}}"}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: all}}
spec: {{template: {{name: large, version: v1}}, values: {{rate: {rate}}}}}
"""


def zones(rate: int) -> str:
    """An assignment for each of fifty zones, with priority over the one for all agents."""
    return "".join(
        f"""---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: zone-{zone}}}
spec:
  template: {{name: large, version: v1}}
  values: {{rate: {rate + zone}}}
  target_selector: {{labels: {{cloud.zone: zone-{zone}}}}}
  priority: 1
"""
        for zone in range(50)
    )


def heartbeats(folder: Path) -> list[Row]:
    def measure(port: int) -> float:
        command = [str(HERE / "bin" / "load"), "-mode", "heartbeat", "-agents", "200", "-seconds", "6"]
        result = subprocess.run(
            ["taskset", "-c", LOAD_CORE, *command, "-target", f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        figure: float = json.loads(result.stdout.splitlines()[-1])["per_second"]
        return figure

    ours, theirs = [], []
    for _ in range(3):
        environment = {**os.environ, "GOMAXPROCS": "1"}
        peer = pinned(NODE_CORE, str(HERE / "bin" / "peers"), "-endpoint", "127.0.0.1:4329", env=environment)
        with running(peer):
            time.sleep(0.5)
            theirs.append(measure(4329))
        with running(node(folder / "heartbeats")):
            ours.append(measure(4320))
    ratio = sorted(o / t for o, t in zip(ours, theirs, strict=True))[1]
    figures = f"{sorted(ours)[1]:,.0f}/s; opamp-go {sorted(theirs)[1]:,.0f}/s; ratio {ratio:.2f}"
    return [Row("heartbeat exchanges per core, WebSocket", figures, "ratio >= 1.2")]


def connects(folder: Path, agents: int) -> list[Row]:
    with running(node(folder / "connects")), running(Load(agents, "-interval", "300s").process) as load:
        assert load.stdout is not None
        connected = json.loads(load.stdout.readline())
    figures = f"{connected['per_second']:,.0f}/s, {connected['failed']} refused"
    return [Row(f"{agents:,} agents connect at once, no policy", figures, ">= 4,000/s")]


def memory(folder: Path, agents: int, *, tls: bool) -> list[Row]:
    more: list[str] = []
    if tls:
        from relay.testing.certificates import Authority

        pair = Authority(folder).issue("node")
        settings = folder / "tls.yaml"
        settings.write_text(
            f"server: {{tls: {{enabled: true, cert_file: {pair.cert_file}, key_file: {pair.key_file}}}}}\n"
        )
        more = ["-c", str(settings)]
    with running(node(folder / f"memory-{tls}", *more)) as server:
        time.sleep(1)
        before = resident_kib(server.pid)
        load = Load(agents, "-interval", "300s", *(["-tls"] if tls else []))
        with running(load.process):
            load.line("connected")
            time.sleep(8)
            slope = (resident_kib(server.pid) - before) / agents
    kind = "TLS" if tls else "plain"
    figures = f"{slope:.1f} KiB; the node's base {before / 1024:.0f} MiB"
    return [Row(f"memory per idle agent, {kind}", figures, "<= 34 KiB" if tls else "<= 12 KiB")]


NO_LOGS = ("--log-level", "error")


def without_logs(folder: Path, agents: int) -> list[Row]:
    """The same with logs off, to show their cost."""
    plane = control_plane(folder)
    with running(plane):
        apply(policy(1))
        with running(node(folder / "quiet", *NO_LOGS)):
            time.sleep(1.5)
            load = Load(agents, "-interval", "30s")
            with running(load.process):
                rows = _change_rows(load, agents)
    return [Row(f"{row.cells[0]}, logs off", row.cells[1], "") for row in rows[:3]]


def changes(folder: Path, agents: int) -> list[Row]:
    rows = without_logs(folder / "no-logs", agents)
    plane = control_plane(folder)
    try:
        apply(policy(1))
        with running(node(folder / "changes")):
            time.sleep(1.5)
            load = Load(agents, "-interval", "30s")
            with running(load.process):
                rows += _change_rows(load, agents)
                rows += _idle_rows(agents)
                plane.kill()
                plane.wait()
                load.ask("change 1000")
                time.sleep(AWAY_S)
                plane = control_plane(folder)
                rows += _recovery_rows(agents, f"control plane back after {AWAY_S} s, 1,000 changed: exact")
                rows += _command_rows(agents)
        plane.kill()
        plane.wait()
        with running(node(folder / "changes")):
            load = Load(agents + 1000, "-interval", "30s")
            with running(load.process):
                load.line("connected")
                load.ask("change 1000")
                time.sleep(5)
                plane = control_plane(folder)
                rows += _recovery_rows(
                    agents + 1000, "both killed, 1,000 new and 1,000 changed: exact after the link is up"
                )
    finally:
        plane.kill()
        plane.wait()
    return rows


def _change_rows(load: Load, agents: int) -> list[Row]:
    connected = load.line("connected")
    joined_s = load.line("config")["last"] - (connected["at"] - connected["seconds"])
    rows = [
        Row(f"{agents:,} agents join: described, given 20 KB, APPLIED", f"{agents / joined_s:,.0f}/s", ">= 3,500/s")
    ]
    time.sleep(8)
    idle = load.ask("idle")["heartbeats"]
    durations, sweeps, p99, worst = [], [], [], []
    for rate in range(2, 5):
        with running(probe(PROBE_S)) as running_probe:
            time.sleep(0.5)
            began = apply(policy(rate))
            config = load.line("config")
            durations.append(config["last"] - began)
            sweeps.append(metric("opamp_relay_policy_change_seconds"))
            assert running_probe.stdout is not None
            latencies = json.loads(running_probe.stdout.readline())
        p99.append(latencies["p99_ms"])
        worst.append(latencies["max_ms"])
        time.sleep(6)
    middle = 1
    rows.append(
        Row(
            f"policy change, 20 KB, until the last of {agents:,} has it",
            f"{sorted(durations)[middle]:.2f} s",
            "<= 0.9 s",
        )
    )
    rows.append(Row("  the node's share of that", f"{sorted(sweeps)[middle]:.2f} s", "<= 0.35 s"))
    during = f"{sorted(p99)[middle]:.0f} ms, longest {max(worst):.0f} ms; idle {idle['p99_ms']:.1f} ms"
    rows.append(Row("  heartbeats' p99 during it", during, "<= 100 ms"))
    apply(zones(100))
    time.sleep(8)
    with running(probe(PROBE_S)) as running_probe:
        time.sleep(0.5)
        apply(zones(200))
        assert running_probe.stdout is not None
        latencies = json.loads(running_probe.stdout.readline())
    figure = f"{latencies['max_ms']:.0f} ms; p99 {latencies['p99_ms']:.0f} ms"
    rows.append(Row("  longest heartbeat with 50 cohorts", figure, "<= 50 ms"))
    time.sleep(6)
    return rows


def _idle_rows(agents: int) -> list[Row]:
    time.sleep(12)
    before = metric('opamp_relay_link_messages_total{kind="report_sent"}')
    time.sleep(20)
    each = (metric('opamp_relay_link_messages_total{kind="report_sent"}') - before) / 20
    return [Row(f"messages upward for {agents:,} idle agents", f"{each:.2f}/s", "<= 1/s")]


def _recovery_rows(agents: int, what: str) -> list[Row]:
    began = time.monotonic()
    up = None
    while time.monotonic() < began + 60:
        nodes = get("/api/v1/nodes")
        if up is None and nodes and nodes[0]["connected"]:
            up = time.monotonic()
        if up is not None:
            listed = get("/api/v1/agents?connected=true&fields=healthy")
            if len(listed) == agents and sum(a["healthy"] is False for a in listed) == 1000:
                exact = time.monotonic() - up
                return [Row(what, f"{exact:.2f} s", "<= 2 s")]
        time.sleep(0.02)
    return [Row(what, "never in 60 s", "<= 2 s")]


def _command_rows(agents: int) -> list[Row]:
    times = []
    for _ in range(4):
        began = time.monotonic()
        subprocess.run([str(BIN / "opampctl"), "get", "agents"], capture_output=True, check=True, timeout=30)
        times.append(time.monotonic() - began)
    rows = [Row(f"opampctl get agents, {agents:,} agents", f"{sorted(times[1:])[1]:.2f} s", "<= 0.4 s")]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(zones(300))
        file.flush()
        began = time.monotonic()
        command = [str(BIN / "opampctl"), "diff", "-f", file.name]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
        duration = time.monotonic() - began
    assert f"{agents} agents would change" in result.stdout, result.stdout[-500:]
    rows.append(Row(f"opampctl diff over {agents:,} agents", f"{duration:.2f} s", "<= 3 s"))
    return rows


def packages(folder: Path) -> list[Row]:
    from relay.testing.certificates import Authority

    folder = folder / "packages"
    folder.mkdir(mode=0o755)
    file = folder / "file"
    file.write_bytes(os.urandom(downloads.SIZE))
    pair = Authority(folder).issue("node")
    tls = folder / "tls.yaml"
    tls.write_text(f"server: {{tls: {{enabled: true, cert_file: {pair.cert_file}, key_file: {pair.key_file}}}}}\n")
    rows: list[Row] = []
    with (
        running(control_plane(folder)),
        downloads.nginx(folder, file, pair.cert_file, pair.key_file, NODE_CORE) as nginx_is_installed,
    ):
        downloads.push(file)
        for kind, more, port in (
            ("plain", [], downloads.NGINX_PORT),
            ("TLS", ["-c", str(tls)], downloads.NGINX_TLS_PORT),
        ):
            with running(node(folder / kind, *more)) as server:
                url = downloads.offered_url(4320, kind == "TLS")
                before = resident_kib(server.pid)
                ours, theirs = [], []
                for _ in range(3):
                    scheme = "https" if kind == "TLS" else "http"
                    if nginx_is_installed:
                        theirs.append(downloads.download(f"{scheme}://127.0.0.1:{port}/file", LOAD_CORE))
                    ours.append(downloads.download(url, LOAD_CORE))
                rows += _download_rows(kind, ours, theirs, (resident_kib(server.pid) - before) / 1024)
                if kind == "plain":
                    rows += _during_download_rows(url)
    return rows


def _download_rows(kind: str, ours: list[float], theirs: list[float], growth_mib: float) -> list[Row]:
    figures = f"{sorted(ours)[1] / 1e6:,.0f} MB/s"
    if theirs:
        ratio = sorted(o / t for o, t in zip(ours, theirs, strict=True))[1]
        figures += f"; nginx {sorted(theirs)[1] / 1e6:,.0f} MB/s; ratio {ratio:.2f}"
    what = f"{downloads.SIZE // 1_000_000} MB x {downloads.AGENTS} agents, {kind}"
    return [
        Row(what, figures, "ratio >= 0.9" if kind == "plain" else "ratio >= 0.85"),
        Row("  the node's memory grew by", f"{growth_mib:.0f} MiB", "<= 64 MB"),
    ]


def _during_download_rows(url: str) -> list[Row]:
    fetches = metric("opamp_relay_blob_fetch_bytes_total") / downloads.SIZE
    quiet = []
    for busy in (False, True):
        loads = [downloads.start(url, LOAD_CORE)] if busy else []
        with running(probe(PROBE_S)) as running_probe:
            assert running_probe.stdout is not None
            quiet.append(json.loads(running_probe.stdout.readline()))
        for load in loads:
            load.wait()
    idle, during = quiet
    figures = f"{during['p99_ms']:.1f} ms, longest {during['max_ms']:.0f} ms; idle {idle['p99_ms']:.1f} ms"
    return [
        Row("  files fetched from the control plane", f"{fetches:.2f}", "1.00"),
        Row("  heartbeats' p99 during it", figures, "<= idle + 20 ms"),
    ]


def decisions(_: Path) -> list[Row]:
    plan, evaluation = (min(measure() for _ in range(3)) for measure in (plan_seconds, evaluation_seconds))
    return [
        Row("planning a stage over 100,000 agents", f"{plan:.2f} s", "<= 0.5 s"),
        Row("evaluating 1,000 assignments for a new agent", f"{evaluation * 1000:.2f} ms", "<= 1 ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--fleet", type=int, default=100_000, help="number of agents in the part `fleet`")
    parser.add_argument("parts", nargs="*", default=PARTS)
    options = parser.parse_args()
    for tool in ("go", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is required for the benchmark")
    subprocess.run(["go", "build", "-o", str(HERE / "bin") + "/", "./load", "./peers"], cwd=HERE, check=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parts: dict[str, Callable[[Path], Iterable[Row]]] = {
        "decisions": decisions,
        "heartbeats": lambda folder: heartbeats(folder),
        "connects": lambda folder: connects(folder, options.agents),
        "memory": lambda folder: memory(folder, options.agents, tls=False),
        "tls": lambda folder: memory(folder, options.agents, tls=True),
        "changes": lambda folder: changes(folder, options.agents),
        "packages": packages,
        "auth": lambda folder: credentials.measure(folder / "auth", options.agents),
        "fleet": lambda folder: fleet.measure(folder, options.fleet),
    }
    print(f"{'measured on the whole path':<58}{'figure':<58}target", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.parts:
            for row in parts[name](Path(scratch)):
                print(f"{row.cells[0]:<58}{row.cells[1]:<58}{row.cells[2]}", flush=True)


if __name__ == "__main__":
    main()

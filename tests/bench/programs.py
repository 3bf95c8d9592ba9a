"""Run the programs as shipped, each pinned to a core, and query them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
NODE_CORE, LOAD_CORE = "0", "1"


class Row:
    """One line of the table."""

    def __init__(self, what: str, measured: str, target: str) -> None:
        self.cells = (what, measured, target)


def pinned(core: str, *command: str, **more: Any) -> subprocess.Popen[str]:
    more.setdefault("stderr", subprocess.DEVNULL)
    return subprocess.Popen(["taskset", "-c", core, *command], text=True, **more)


def log_sink() -> IO[bytes]:
    """A pipe that is read and discarded, for logs."""
    reader = subprocess.Popen(["taskset", "-c", LOAD_CORE, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    return reader.stdin


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def control_plane(folder: Path, core: str = LOAD_CORE) -> subprocess.Popen[str]:
    args = ["control-plane", "--data", str(folder / "plane")]
    with log_sink() as logs:
        process = pinned(core, str(BIN / "opamp-relay"), *args, stderr=logs)
    wait_for("http://127.0.0.1:4340/ready")
    return process


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 300  # a control plane with a million agents takes its time
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def get(path: str, port: int = 4340) -> Any:
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30))


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def apply(text: str) -> float:
    """Apply through the admin API; return the time of the request."""
    body = json.dumps({"sources": [{"source": "bench", "text": text}]}).encode()
    request = urllib.request.Request("http://127.0.0.1:4340/api/v1/apply", body, {"Content-Type": "application/json"})
    began = time.time()
    urllib.request.urlopen(request, timeout=30).read()
    return began


class Client:
    """A program beside the measured ones: it prints JSON lines for events, and one in answer to each command."""

    def __init__(self, *command: str) -> None:
        self.process = pinned(LOAD_CORE, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def line(self, event: str) -> dict[str, Any]:
        out: IO[str] | None = self.process.stdout
        assert out is not None
        for text in out:
            message: dict[str, Any] = json.loads(text)
            if message["event"] == event:
                return message
        raise RuntimeError("the program ended")

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.line(command)

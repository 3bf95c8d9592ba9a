"""`opamp-relay simulate`, and output for simulated agents."""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from relay.testing.agents import SimulatedAgent, Simulation, fleet

_EVENT_LABELS = {
    "connected": "connected",
    "received": "received config",
    "applied": "applied config",
    "failed": "FAILED:",
    "installed": "installed",
    "not_installed": "NOT INSTALLED:",
    "disconnected": "disconnected",
    "unreachable": "cannot connect:",
}


def _print(line: str) -> None:
    print(line, flush=True)


class Narrator:
    """Writes one line per agent event, and counts events.

    Args:
        quiet: only count.
        tell: receives the lines; default: print them.
    """

    def __init__(self, *, quiet: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self._quiet = quiet
        self._tell = tell or _print
        self.counts: Counter[str] = Counter()

    def on_event(self, agent: SimulatedAgent, event: str, detail: str) -> None:
        """Handle an event of a simulated agent."""
        self.counts[event] += 1
        if not self._quiet:
            text = detail[:12] if event in ("received", "applied") else detail
            kind = agent.attributes.get("role", "")
            self._tell(f"  {agent.name:<12} {kind:<8} {_EVENT_LABELS[event]} {text}".rstrip())

    def summary(self) -> str:
        """Format all counts as one line."""
        return "  ".join(f"{event} {self.counts[event]}" for event in _EVENT_LABELS)


class TlsFiles(NamedTuple):
    """Files (PEM) for TLS; empty for none."""

    ca: str = ""
    """CAs of the node's certificate."""
    certificate: str = ""
    """Of the agents, all of which have the same."""
    key: str = ""

    def context(self) -> ssl.SSLContext | None:
        """How to connect; None for the usual way.

        Raises:
            OSError: a file cannot be used.
        """
        if not any(self):
            return None
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key or None)
        return context


NO_FILES = TlsFiles()


async def run_simulation(
    stop: asyncio.Event,
    count: int,
    endpoint: str,
    *,
    heartbeat_s: float,
    prefix: str,
    seed: int | None,
    quiet: bool,
    token: str = "",
    files: TlsFiles = NO_FILES,
) -> int:
    """Run agents until `stop`.

    Raises:
        OSError: a file of `files` cannot be used.
    """
    narrator = Narrator(quiet=quiet)
    chance = random.Random(seed)  # noqa: S311
    simulation = Simulation(
        fleet(count, prefix=prefix, chance=chance, on_event=narrator.on_event),
        endpoint,
        heartbeat_s=heartbeat_s,
        token=token,
        ssl_context=files.context(),
    )
    simulation.start()
    last_line = ""
    while not stop.is_set():
        try:
            async with asyncio.timeout(1):
                await stop.wait()
        except TimeoutError:
            if quiet and (line := narrator.summary()) != last_line:
                last_line = line
                print(line, file=sys.stderr, flush=True)
    await simulation.stop()
    return 0

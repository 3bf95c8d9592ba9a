"""`opamp-relay simulate`, and the agents of the demo."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable

from relay.testing.agents import SimulatedAgent, Simulation, fleet

_WORDS = {
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
    """Tells what agents do, a line an event; and counts.

    Args:
        tell: takes the lines; they are printed if it is left out.
    """

    def __init__(self, *, quiet: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self._quiet = quiet
        self._tell = tell or _print
        self.counts: Counter[str] = Counter()

    def told(self, agent: SimulatedAgent, event: str, detail: str) -> None:
        """The callback of simulated agents."""
        self.counts[event] += 1
        if not self._quiet:
            shown = detail[:12] if event in ("received", "applied") else detail
            kind = agent.attributes.get("role", "")
            self._tell(f"  {agent.name:<12} {kind:<8} {_WORDS[event]} {shown}".rstrip())

    def line(self) -> str:
        """All counts in one line."""
        return "  ".join(f"{event} {self.counts[event]}" for event in _WORDS)


async def run_simulation(
    stop: asyncio.Event, count: int, endpoint: str, *, heartbeat_s: float, prefix: str, seed: int | None, quiet: bool
) -> int:
    """Run agents until `stop`."""
    narrator = Narrator(quiet=quiet)
    chance = random.Random(seed)  # noqa: S311
    simulation = Simulation(
        fleet(count, prefix=prefix, chance=chance, told=narrator.told), endpoint, heartbeat_s=heartbeat_s
    )
    simulation.start()
    said = ""
    while not stop.is_set():
        try:
            async with asyncio.timeout(1):
                await stop.wait()
        except TimeoutError:
            if quiet and (line := narrator.line()) != said:
                said = line
                print(line, file=sys.stderr, flush=True)
    await simulation.stop()
    return 0

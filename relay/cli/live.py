"""Live view of a standalone program: a picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from typing import Any

from relay.cli.rollout import headline
from relay.control.app import ControlPlane
from relay.control.fleet import views

_POLL_S = 0.5
_EVENTS = 8


class LiveView:
    """Shows a control plane, which it polls, and events that others report with `tell`."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._last_lines: dict[str, str] = {}
        self.is_drawn = False
        """Whether events appear in the picture instead of as lines."""

    def report(self, line: str) -> None:
        """Report an event."""
        self._events.append(line.strip())
        if not self.is_drawn:
            print(line, flush=True)

    async def run(self, stop: asyncio.Event) -> None:
        """Show the control plane until `stop`."""
        if not sys.stdout.isatty():
            await self._poll(stop, lambda _: None)
            return
        from rich.live import Live
        from rich.text import Text

        self.is_drawn = True
        try:
            with Live(auto_refresh=False) as live:

                def draw(lines: list[str]) -> None:
                    live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

                await self._poll(stop, draw)
        finally:
            self.is_drawn = False

    async def _poll(self, stop: asyncio.Event, draw: Any) -> None:
        while not stop.is_set():
            rollouts = await self._control_plane.status.listing()
            self._tell_rollouts(rollouts)
            draw(self.render(rollouts))
            try:
                async with asyncio.timeout(_POLL_S):
                    await stop.wait()
            except TimeoutError:
                continue

    def _tell_rollouts(self, rollouts: list[dict[str, Any]]) -> None:
        for rollout in rollouts:
            line = f"  rollout {headline(rollout)}"
            if self._last_lines.get(rollout["name"]) != line:
                self._last_lines[rollout["name"]] = line
                self.report(line)

    def render(self, rollouts: list[dict[str, Any]]) -> list[str]:
        """Format regions, agents by state, rollouts and the latest events as lines of text."""
        fleet = self._control_plane.fleet
        lines = [""]
        for region in views.regions(fleet.census):
            counts = "  ".join(f"{name} {count}" for name, count in sorted(region["config_status"].items()) if count)
            lines.append(
                f"region {region['name']:<10} nodes {region['nodes_connected']} of {region['nodes']}"
                f"  agents {region['connected']} of {region['agents']}  healthy {region['healthy']}"
                f"  unhealthy {region['unhealthy']}  {counts}"
            )
        by_assignment: Counter[str] = Counter()
        for agent in fleet.census.agents.values():
            by_assignment.update({slot.assignment for slot in agent.config.slots})
        for name, count in sorted(by_assignment.items()):
            lines.append(f"assignment {name:<16} {count} agents")
        for rollout in rollouts:
            stage = rollout["stages"][rollout["stage"]]
            counts = "  ".join(f"{key} {stage['counts'][key]}" for key in ("targets", "applied", "failed", "silent"))
            lines.append(f"rollout {headline(rollout)}  [{stage['name']}: {counts}]")
        return [*lines, "", *self._events]

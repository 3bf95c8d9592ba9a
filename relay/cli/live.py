"""What goes on in a standalone program, while it goes on: a picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from typing import Any

from relay.cli.rollout import headline
from relay.control.app import ControlPlane
from relay.control.fleet import views

_LOOK_S = 0.5
_EVENTS = 8


class LiveView:
    """Looks at a control plane now and then. Whatever else happens is told to it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._said: dict[str, str] = {}
        self.is_drawn = False
        """What is told to it is shown in the picture, and not as a line."""

    def tell(self, line: str) -> None:
        """Something happened."""
        self._events.append(line.strip())
        if not self.is_drawn:
            print(line, flush=True)

    async def run(self, stop: asyncio.Event) -> None:
        """Show what there is until `stop`."""
        if not sys.stdout.isatty():
            await self._look(stop, lambda _: None)
            return
        from rich.live import Live
        from rich.text import Text

        self.is_drawn = True
        try:
            with Live(auto_refresh=False) as live:

                def draw(lines: list[str]) -> None:
                    live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

                await self._look(stop, draw)
        finally:
            self.is_drawn = False

    async def _look(self, stop: asyncio.Event, draw: Any) -> None:
        while not stop.is_set():
            rollouts = await self._control_plane.status.listing()
            self._tell_rollouts(rollouts)
            draw(self.picture(rollouts))
            try:
                async with asyncio.timeout(_LOOK_S):
                    await stop.wait()
            except TimeoutError:
                continue

    def _tell_rollouts(self, rollouts: list[dict[str, Any]]) -> None:
        for rollout in rollouts:
            line = f"  rollout {headline(rollout)}"
            if self._said.get(rollout["name"]) != line:
                self._said[rollout["name"]] = line
                self.tell(line)

    def picture(self, rollouts: list[dict[str, Any]]) -> list[str]:
        """Regions, agents by state, rollouts and the last events, in lines of text."""
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

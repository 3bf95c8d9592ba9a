"""`opamp-relay standalone` and its demo."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from relay.cli.live import LiveView
from relay.cli.simulate import Narrator
from relay.control.access.actor import Actor
from relay.control.app import ControlPlane
from relay.node.app import Node
from relay.settings.programs import StandaloneSettings
from relay.testing.agents import Simulation, fleet

SAMPLE_POLICY = Path("config/policy")
FAILURE = Path("config/demo/failure.yaml")
_AGENTS = 20


async def run_standalone(
    settings: StandaloneSettings, stop: asyncio.Event, *, demo: bool, failure: bool = False
) -> int:
    """Run a control plane and a node until `stop`.

    Args:
        demo: also apply the sample policy and run simulated agents.
        failure: in the demo, also apply a change that agents refuse.
    """
    control_plane = ControlPlane(settings.for_control_plane())
    node = Node(settings.for_node())
    await control_plane.start()
    try:
        await node.start()
        try:
            if demo:
                await _demo(control_plane, node, stop, failure)
            await stop.wait()
        finally:
            all_written = await node.stop()
    finally:
        await control_plane.stop()
    return 0 if all_written else 1


def sample_policy() -> list[tuple[str, str]]:
    """(file name, text) of the sample policy; empty unless the working directory is the project's folder."""
    return _texts(*sorted(SAMPLE_POLICY.glob("*.yaml")))


def _texts(*files: Path) -> list[tuple[str, str]]:
    return [(str(path), path.read_text()) for path in files if path.is_file()]


async def _demo(control_plane: ControlPlane, node: Node, stop: asyncio.Event, failure: bool) -> None:
    print(f"OpAMP relay: control plane and one node of region {node.metrics.region}, in this process.\n")
    if not control_plane.ledger.state.assignments:
        texts = sample_policy()
        if texts:
            await control_plane.documents.apply(texts)
            print(f"Applied the sample policy of {SAMPLE_POLICY}/.")
    else:
        print("The policy of an earlier run is in force.")
    view = LiveView(control_plane)
    narrator = Narrator(tell=view.report)
    print(f"Starting {_AGENTS} simulated agents of two kinds:\n")
    chance = random.Random(1)  # noqa: S311
    agents = fleet(_AGENTS, prefix="demo", chance=chance, on_event=narrator.on_event)
    simulation = Simulation(agents, f"ws://127.0.0.1:{node.ports['websocket']}/v1/opamp", together=2)
    simulation.start()
    try:
        for _ in range(100):
            if narrator.counts["applied"] + narrator.counts["failed"] >= _AGENTS or stop.is_set():
                break
            await asyncio.sleep(0.1)
        _explain(control_plane, node)
        if failure:
            await _apply_failure(control_plane)
        await view.run(stop)
        print("\nStopping.")
    finally:
        await simulation.stop()


async def _apply_failure(control_plane: ControlPlane) -> None:
    """Apply a change that agents refuse, with a strategy that tries it on a few of them first."""
    if not (texts := _texts(FAILURE)):
        print(f"{FAILURE} does not exist: run this in the project's folder.")
        return
    outcomes = await control_plane.documents.apply(texts, actor=Actor("demo"))
    await control_plane.publisher.publish()
    print(f"Applied {FAILURE}: no Collector starts with this template. Strategy: canary (30 %, then everyone).")
    for applied in outcomes.applied:
        for warning in applied.warnings:
            print(f"warning: {warning}")
    server = _server_option(control_plane)
    print(
        f"""
The canary agents refuse it, and it is rolled back. No other agent gets it. Then see

  .venv/bin/opampctl rollout status production{server}
  .venv/bin/opampctl diff rollout production{server}
  .venv/bin/opampctl explain agent demo-0001{server}
""",
        flush=True,
    )


def _server_option(control_plane: ControlPlane) -> str:
    api = control_plane.ports["api"]
    return "" if api == 4340 else f" --server http://127.0.0.1:{api}"


def _explain(control_plane: ControlPlane, node: Node) -> None:
    ports, server = node.ports, _server_option(control_plane)
    print(
        f"""
All agents run what the policy selects for them. While this runs:

  see them           .venv/bin/opampctl get agents{server}
  change the policy  edit sampling_rate of an assignment in config/policy/collector.yaml, then
                     .venv/bin/opampctl apply -f config/policy{server}
  a real agent       point any OpAMP client at ws://127.0.0.1:{ports["websocket"]}/v1/opamp
                     (or http://127.0.0.1:{ports["http"]}/v1/opamp, or gRPC on 127.0.0.1:{ports["grpc"]});
                     config/agents/supervisor.yaml is ready for a Collector's supervisor
  metrics            http://127.0.0.1:{ports["metrics"]}/metrics
  the node itself    http://127.0.0.1:{ports["http"]}/api/v1/status

Press Ctrl-C to stop.
""",
        flush=True,
    )

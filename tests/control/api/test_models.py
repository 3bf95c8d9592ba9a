"""The API answers as its description says: checked against its models, and with a client generated from them."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from relay.control.app import ControlPlane
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.api.client import Client
from tests.control.texts import TWO_STAGES, staged
from tests.wire import TestAgent

GETS = (
    "regions", "nodes", "agents", "agents/agent-0", "agents/agent-0/explain", "rollouts", "rollouts/a-1",
    "assignments/a/history", "audit", "audit/verify", "drift", "documents/templates", "documents/assignments",
    "documents/assignments/a", "packages", "package-status",
)  # fmt: skip


async def populated(programs: Programs) -> tuple[ControlPlane, Client]:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, TWO_STAGES, staged(1), assignment("seen", priority=2) + "  observe_only: true\n")
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over("websocket", node.ports, "agent-0")
    await agent.hello(**{"service.version": "1.0"})
    await eventually(lambda: len(plane.fleet.census.agents) == 1)
    return plane, Client(plane.ports["api"])


async def test_every_answer_fits_its_model(programs: Programs) -> None:
    _, client = await populated(programs)
    _, document = await client.call("GET", "/api/v1/openapi.json")
    assert isinstance(document, dict)

    def holds(path: str, status: str, value: object) -> None:
        media = document["paths"][path]["get"]["responses"][status]["content"]
        (form,) = media.values()
        Draft202012Validator({**form["schema"], "components": document["components"]}).validate(value)

    for path in GETS:
        status, answer = await client.call("GET", f"/api/v1/{path}")
        assert status == 200, (path, answer)
        route = next(p for p in document["paths"] if _fits(p, f"/api/v1/{path}"))
        holds(route, "200", answer)
    status, answer = await client.call("GET", "/api/v1/agents/nobody")
    holds("/api/v1/agents/{agent_id}", "4XX", answer)


def _fits(pattern: str, path: str) -> bool:
    ours, theirs = pattern.split("/"), path.split("/")
    return len(ours) == len(theirs) and all(o == t or o.startswith("{") for o, t in zip(ours, theirs, strict=True))


async def test_every_route_has_a_name_a_tag_and_a_model(programs: Programs) -> None:
    _, client = await populated(programs)
    _, document = await client.call("GET", "/api/v1/openapi.json")
    assert isinstance(document, dict)
    routes = [route for path in document["paths"].values() for route in path.values()]
    names = [route["operationId"] for route in routes]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalpha() for name in names)
    for route in routes:
        assert route["tags"]
        assert "application/problem+json" in route["responses"]["4XX"]["content"]
        (form,) = route["responses"]["200"]["content"].values()
        assert form["schema"], route["operationId"]


async def test_generated_client_lists_agents_and_starts_a_rollout(programs: Programs, tmp_path: Path) -> None:
    plane, client = await populated(programs)
    _, document = await client.call("GET", "/api/v1/openapi.json")
    described, folder = tmp_path / "openapi.json", tmp_path / "generated_client"
    described.write_text(json.dumps(document))
    command = ["generate", "--path", str(described), "--meta", "none", "--output-path", str(folder)]
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the generator formats with the ruff on this path
    generator = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openapi_python_client", *command, env={**os.environ, "PATH": search},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said = (await generator.communicate())[0].decode()
    assert (generator.returncode, "warning" in said.lower()) == (0, False), said
    sys.path.insert(0, str(tmp_path))
    try:
        agents, rollouts = await asyncio.to_thread(_use, client.url)
    finally:
        sys.path.remove(str(tmp_path))
    assert agents == [("agent-0", "local", True)]
    assert rollouts == ["a-2"]
    assert plane.ledger.state.assignments["a"].number == 2


def _use(url: str) -> tuple[list[tuple[Any, ...]], list[str]]:
    """A program written with the generated client only."""
    package = importlib.import_module("generated_client")
    models = importlib.import_module("generated_client.models")
    list_agents = importlib.import_module("generated_client.api.fleet.list_agents")
    apply_documents = importlib.import_module("generated_client.api.documents.apply_documents")
    with package.Client(base_url=url) as session:
        found = list_agents.sync(client=session, region="local", connected=True)
        text = staged(2)
        body = models.ApplyRequest(sources=[models.SourceText(source="a.yaml", text=text)])
        answer = apply_documents.sync(client=session, body=body)
    return [(a.agent_id, a.region, a.connected) for a in found], [r.name for r in answer.rollouts]

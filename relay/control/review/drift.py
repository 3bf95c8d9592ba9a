"""Drift: agents that do not run what an observe-only assignment specifies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from relay.control.access.roles import Grants
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.state import State
from relay.control.rollouts.revision import GlobalConfig, Pinned
from relay.documents import parse
from relay.errors import NotFound, Refused
from relay.policy import selector
from relay.policy import template as templates

_SLICE = 200


async def drift(fleet: Fleet, state: State, grants: Grants | None = None) -> list[dict[str, Any]]:
    """Compare the agents that observe-only assignments match: one entry per agent and assignment.

    Args:
        grants: only agents in their scope; None for all.

    Returns:
        `{agent, region, assignment, slot, state, differences: [{path, wanted, found}]}`; `state` is `same`, `different`
        or `unknown` (it has not reported its effective config).
    """
    entries = []
    observing = [
        (assignment.name, assignment.stable)
        for assignment in state.assignments.values()
        if assignment.observe_only and isinstance(assignment.stable, GlobalConfig)
    ]
    configs: dict[tuple[str, str], Mapping[str, Any] | None] = {}
    for i, agent in enumerate(fleet.census.visible() if observing else []):
        if i % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        if grants is not None and not grants.has(agent.facts.labels):
            continue
        region = agent.profile.region
        for name, revision in observing:
            if not selector.matches(revision.selector, agent.facts):
                continue
            key = (name, region)
            if key not in configs:
                configs[key] = _render(state.pinned, revision, region)
            entries.append(await _entry(fleet, agent, region, name, revision.slot, configs[key]))
    return sorted(entries, key=lambda entry: (entry["assignment"], entry["agent"]))


def _render(pinned: Pinned, revision: GlobalConfig, region: str) -> Mapping[str, Any] | None:
    template, values = pinned.inputs(revision, region)
    resolved, problems = templates.resolve(template, revision.values, values)
    return None if problems else _parse(templates.render(template, resolved))


async def _entry(
    fleet: Fleet, agent: Agent, region: str, assignment: str, slot: str, expected: Mapping[str, Any] | None
) -> dict[str, Any]:
    differences: list[dict[str, Any]] = []
    try:
        effective = await fleet.bodies.effective_config(agent)
    except NotFound:
        verdict = "unknown"
    else:
        slots = effective.config_map.config_map
        body = slots[slot].body if slot in slots else b""
        differences = differing(expected or {}, _parse(body))
        verdict = "different" if differences else "same"
    return {
        "agent": agent.agent_id,
        "region": region,
        "assignment": assignment,
        "slot": slot,
        "state": verdict if expected is not None else "unknown",
        "differences": differences,
    }


def differing(expected: Mapping[str, Any], actual: Mapping[str, Any], path: str = "") -> list[dict[str, Any]]:
    """Differences between an expected and an actual config. Additional keys in the actual one are no drift."""
    differences = []
    for key, value in expected.items():
        where = f"{path}.{key}" if path else str(key)
        other = actual.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            differences += differing(value, other, where)
        elif key not in actual or other != value:
            differences.append({"path": where, "wanted": value, "found": other})
    return differences


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        documents = parse(body, "config")
    except Refused:
        return {}
    value = documents[0].value if documents else None
    return value if isinstance(value, dict) else {}

"""Which agents run something else than an assignment says that only observes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.state import State
from relay.control.rollouts.revision import GlobalConfig, Pinned
from relay.documents import parse
from relay.errors import NotFound, Refused
from relay.policy import selector
from relay.policy import template as templates

_SLICE = 200


async def drift(fleet: Fleet, state: State) -> list[dict[str, Any]]:
    """One entry for each agent that an observing assignment matches.

    Returns:
        `{agent, region, assignment, slot, state, differences: [{path, wanted, found}]}`; `state` is `same`, `different`
        or `unknown` (it has not reported what it runs).
    """
    found = []
    watching = [
        (held.name, held.stable)
        for held in state.assignments.values()
        if held.observe_only and isinstance(held.stable, GlobalConfig)
    ]
    wanted: dict[tuple[str, str], Mapping[str, Any] | None] = {}
    for i, agent in enumerate(fleet.census.shown() if watching else []):
        if i % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        region = agent.profile.region
        for name, revision in watching:
            if not selector.matches(revision.selector, agent.facts):
                continue
            key = (name, region)
            if key not in wanted:
                wanted[key] = _rendered(state.pinned, revision, region)
            found.append(await _entry(fleet, agent, region, name, revision.slot, wanted[key]))
    return sorted(found, key=lambda entry: (entry["assignment"], entry["agent"]))


def _rendered(pinned: Pinned, revision: GlobalConfig, region: str) -> Mapping[str, Any] | None:
    template, values = pinned.inputs(revision, region)
    resolved, problems = templates.resolve(template, revision.values, values)
    return None if problems else _parsed(templates.render(template, resolved))


async def _entry(
    fleet: Fleet, agent: Agent, region: str, assignment: str, slot: str, wanted: Mapping[str, Any] | None
) -> dict[str, Any]:
    differences: list[dict[str, Any]] = []
    try:
        effective = await fleet.bodies.effective_config(agent)
    except NotFound:
        verdict = "unknown"
    else:
        slots = effective.config_map.config_map
        body = slots[slot].body if slot in slots else b""
        differences = differing(wanted or {}, _parsed(body))
        verdict = "different" if differences else "same"
    return {
        "agent": agent.agent_id,
        "region": region,
        "assignment": assignment,
        "slot": slot,
        "state": verdict if wanted is not None else "unknown",
        "differences": differences,
    }


def differing(wanted: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> list[dict[str, Any]]:
    """What of a wanted config is otherwise in a found one; that there is more than is wanted is no drift."""
    differences = []
    for key, value in wanted.items():
        where = f"{path}.{key}" if path else str(key)
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            differences += differing(value, other, where)
        elif key not in found or other != value:
            differences.append({"path": where, "wanted": value, "found": other})
    return differences


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        documents = parse(body, "config")
    except Refused:
        return {}
    value = documents[0].value if documents else None
    return value if isinstance(value, dict) else {}

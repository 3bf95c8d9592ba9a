"""Routes of the fleet: regions, nodes, agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from relay.control.access import actor as access
from relay.control.access.nodes import JoinedNode
from relay.control.api.caller import Actor, Reveal, is_masked, scopes_of
from relay.control.api.models import (
    AgentView,
    ConfigBody,
    Done,
    Explanation,
    NodeView,
    RegionView,
    WholeAgent,
    answers,
)
from relay.control.api.pages import as_json
from relay.control.fleet import query, views
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.ledger import Ledger
from relay.control.review.preview import Previews
from relay.fleet.view import rfc3339
from relay.ids import format_uid
from relay.policy.mask import Mask

_SLICE = 200
NEXT = "X-Next-After"
"""The header with the `after` value of the next page; absent on the last page."""
TOTAL = "X-Total-Count"
"""The header with the number of agents in the whole list."""
Status = Literal["APPLIED", "APPLYING", "FAILED", "UNSET"]


def add_fleet_routes(api: FastAPI, fleet: Fleet, previews: Previews, ledger: Ledger) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/regions", **answers(list[RegionView], "fleet"))
    async def list_regions() -> list[dict[str, Any]]:
        """All regions, with counts."""
        return views.regions(fleet.census)

    @api.get("/api/v1/nodes", **answers(list[NodeView], "fleet"))
    async def list_nodes() -> list[dict[str, Any]]:
        """All nodes."""
        joined = ledger.state.joined_nodes
        return [
            {**view, **_identity(joined.get(f"{view['region']}/{view['name']}"))} for view in views.nodes(fleet.census)
        ]

    @api.delete("/api/v1/nodes/{region}/{name}", **answers(Done, "fleet"))
    async def forget_node(region: str, name: str, actor: Actor) -> dict[str, str]:
        """Forget a disconnected node and its agents."""
        await fleet.forget_node(region, name, actor=actor)
        return {"kind": "Node", "name": f"{region}/{name}", "action": "deleted"}

    @api.get("/api/v1/agents", **answers(list[AgentView], "fleet"))
    async def list_agents(
        actor: Actor,
        status: Annotated[Status | None, Query(description="status of the config")] = None,
        healthy: Annotated[bool | None, Query(description="connected agents only")] = None,
        connected: Annotated[bool | None, Query()] = None,
        region: Annotated[str, Query()] = "",
        node: Annotated[str, Query(description="NAME or REGION/NAME")] = "",
        version: Annotated[str, Query(description="service.version")] = "",
        label: Annotated[list[str] | None, Query(description="k=v; several must all match")] = None,
        sort: Annotated[str, Query(description=f"{', '.join(query.SORTS)}; prefix - to reverse")] = "agent_id",
        limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        after: Annotated[str, Query(description="the last agent of the page before")] = "",
        fields: Annotated[str, Query(description="top-level fields to return, separated by commas")] = "",
    ) -> StreamingResponse:
        """List agents. The header X-Total-Count is the number of all that match."""
        agent_query = query.Query(
            status=status or "",
            healthy=healthy,
            connected=connected,
            region=region,
            node=node,
            version=version,
            labels=query.parse_labels(label or []),
            scopes=scopes_of(actor),
            sort=sort,
            limit=limit,
            after=after,
        )
        page = await query.choose(fleet, agent_query)
        keep = frozenset(f for f in fields.split(",") if f)
        headers = {TOTAL: str(page.total)}
        if page.more:
            headers[NEXT] = format_uid(page.agents[-1].uid)
        return StreamingResponse(
            as_json(_agents(fleet, page.agents, keep)), media_type="application/json", headers=headers
        )

    @api.get("/api/v1/agents/{agent_id}", **answers(WholeAgent, "fleet"))
    async def get_agent(agent_id: str, actor: Actor) -> dict[str, Any]:
        """One agent, with its full health and components."""
        return await views.whole(fleet, await _visible(fleet, agent_id, actor))

    @api.get("/api/v1/agents/{agent_id}/explain", **answers(Explanation, "fleet"))
    async def explain_agent(agent_id: str, actor: Actor) -> dict[str, Any]:
        """Why an agent gets what it gets."""
        return await previews.explain(await _visible(fleet, agent_id, actor))

    @api.get("/api/v1/agents/{agent_id}/config", **answers(dict[str, ConfigBody], "fleet"))
    async def get_agent_config(agent_id: str, actor: Actor, reveal: Reveal = False) -> dict[str, dict[str, str]]:
        """The effective config that an agent reported, by slot."""
        mask = Mask() if is_masked(actor, reveal) else None
        config = await fleet.bodies.effective_config(await _visible(fleet, agent_id, actor))
        slots = config.config_map.config_map
        bodies = {slot: slots[slot].body.decode("utf-8", "replace") for slot in sorted(slots)}
        if mask is not None:
            bodies = await asyncio.to_thread(
                lambda: {s: mask.text(b, slots[s].content_type) for s, b in bodies.items()}
            )
        return {slot: {"content_type": slots[slot].content_type, "body": body} for slot, body in bodies.items()}


def _identity(node: JoinedNode | None) -> dict[str, Any]:
    """How a node proves who it is."""
    if node is None:
        return {"identity": "unverified", "certificate": None}
    return {
        "identity": "revoked" if node.revoked else "verified",
        "certificate": {"serial": node.serial, "not_after": rfc3339(node.not_after_ms)},
    }


async def _visible(fleet: Fleet, name: str, actor: access.Actor) -> Agent:
    """The agent with a name, if it is in the scope of the person who asks.

    Raises:
        NotFound: there is none, or it is outside the scope.
    """
    grants = actor.grants
    return await query.find(fleet, name, lambda agent: grants is None or grants.has(agent.facts.labels))


async def _agents(fleet: Fleet, agents: list[Agent], keep: frozenset[str]) -> AsyncIterator[list[dict[str, Any]]]:
    """The views of agents, in slices."""
    for i in range(0, len(agents), _SLICE):
        uids = [agent.uid for agent in agents[i : i + _SLICE]]
        states = await fleet.records.states(uids)
        # Since the list was made, an agent may have been replaced or removed.
        current = (fleet.census.agents.get(uid) for uid in uids if uid in states)
        yield [views.of(fleet.census, agent, states[agent.uid], keep) for agent in current if agent is not None]

"""Routes of nodes' identities: join tokens, certificates, and taking them away."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field

from relay.control.access.nodes import JoinGrant
from relay.control.api.caller import Actor
from relay.control.api.models import Done, JoinTokenView, NewJoinToken, RequestBody, answers
from relay.control.identity import Identities
from relay.control.join.registry import GrantRequest, JoinRegistry
from relay.control.ledger.ledger import Ledger
from relay.errors import Conflict
from relay.fleet.view import rfc3339

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_NOT_HERE = "nodes need no certificates here: set server.link.tls.enabled"


class CreateJoinToken(RequestBody):
    """A token by which nodes join a region."""

    region: Annotated[str, Field(pattern=_NAME)]
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")] = ""
    uses: int = Field(default=1, ge=1, le=1000)
    ttl_s: float = Field(default=3600, ge=10, le=365 * 86_400, description="seconds")
    replace: bool = Field(default=False, description="a node may take the name of one that joined before")


class RevokeNode(RequestBody):
    """Why a node's identity is taken away."""

    reason: str = Field(min_length=1, max_length=2000)


def add_node_routes(api: FastAPI, identities: Identities | None, ledger: Ledger) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/join-tokens", **answers(list[JoinTokenView], "nodes"))
    async def list_join_tokens() -> list[dict[str, Any]]:
        """Join tokens that were not deleted, without their secrets."""
        known = ledger.state.join_grants.values()
        return [_grant_view(grant) for grant in sorted(known, key=lambda grant: (grant.created_ms, grant.id))]

    @api.post("/api/v1/join-tokens", **answers(NewJoinToken, "nodes"))
    async def create_join_token(request: CreateJoinToken, actor: Actor) -> dict[str, Any]:
        """Make a join token. The response is the only place where it is ever shown."""
        grant, token = await _registry(identities).grant(
            GrantRequest(request.region, request.name, request.uses, request.ttl_s, request.replace), actor=actor
        )
        return {**_grant_view(grant), "token": token}

    @api.delete("/api/v1/join-tokens/{grant_id}", **answers(Done, "nodes"))
    async def delete_join_token(grant_id: str, actor: Actor) -> dict[str, str]:
        """Delete a join token. Nodes that joined by it stay."""
        await _registry(identities).withdraw(grant_id, actor=actor)
        return {"kind": "JoinToken", "name": grant_id, "action": "deleted"}

    @api.post("/api/v1/nodes/{region}/{name}/revoke", **answers(Done, "nodes"))
    async def revoke_node(region: str, name: str, request: RevokeNode, actor: Actor) -> dict[str, str]:
        """Take a node's identity away. Its streams end, and it must join again."""
        if identities is None:
            raise Conflict(_NOT_HERE)
        await identities.registry.revoke(f"{region}/{name}", request.reason, actor=actor)
        return {"kind": "Node", "name": f"{region}/{name}", "action": "revoked"}


def _registry(identities: Identities | None) -> JoinRegistry:
    if identities is None or not identities.is_own:
        raise Conflict(_NOT_HERE)
    return identities.registry


def _grant_view(grant: JoinGrant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "region": grant.region,
        "name": grant.name,
        "uses": grant.uses,
        "used_by": [name for name, _ in grant.joined],
        "replace": grant.replaces,
        "created": rfc3339(grant.created_ms),
        "created_by": grant.created_by,
        "expires": rfc3339(grant.expires_ms),
    }

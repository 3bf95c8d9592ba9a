"""Routes of credentials: agents' keys, people's tokens, revocations. A secret is only in the response that made it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field

from relay.auth.revocations import Kind
from relay.control.access import actor as access
from relay.control.access.keys import ApiKey, ApiKeys
from relay.control.access.revocations import Revocation
from relay.control.access.roles import Grant, Role
from relay.control.access.tokens import Token
from relay.control.api.caller import Actor
from relay.control.api.models import ApiKeyView, Done, NewKey, NewToken, RequestBody, RevocationView, TokenView, answers
from relay.control.api.pages import After, Limit, behind
from relay.control.credentials.credentials import Credentials
from relay.control.credentials.keys import KeyRequest
from relay.control.credentials.tokens import TokenRequest
from relay.control.ledger.ledger import Ledger
from relay.errors import Problem, Refused
from relay.fleet.view import rfc3339

_MAX_S = 10 * 365 * 86_400
Lifetime = Annotated[float, Field(ge=1, le=_MAX_S, description="seconds")]
Region = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class CreateKey(RequestBody):
    """A key for one agent, or for a fleet."""

    agent: str = Field(default="", max_length=256, description="the agent id that it proves")
    fleet: str = Field(default="", max_length=256, description="the name of the agents that share it")
    labels: dict[str, str | int | float | bool] = Field(default_factory=dict)
    regions: list[Region] = Field(default_factory=list, max_length=1000, description="empty for every region")
    expires_s: Lifetime | None = Field(default=None, description="seconds; null for the lifetime in the settings")


class RotateKey(RequestBody):
    """How long the old key is accepted beside the new one."""

    overlap_s: float = Field(default=86_400, ge=0, le=_MAX_S, description="seconds")


class CreateToken(RequestBody):
    """A token for a person or a program."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+$", description="what it is for")
    role: Role
    scope: dict[str, str] = Field(default_factory=dict, max_length=32, description="labels; empty for all agents")
    expires_s: Lifetime = Field(default=90 * 86_400)
    owner: str = Field(
        default="", max_length=256, pattern=r"^[\x20-\x7e]*$", description="who acts with it; admins only"
    )
    on_nodes: bool = Field(default=False, description="nodes accept it too, for reading")


class CreateRevocation(RequestBody):
    """What is refused from now on."""

    kind: Kind
    value: str = Field(min_length=1, max_length=512)
    reason: str = Field(min_length=1, max_length=2000)


def add_credential_routes(api: FastAPI, credentials: Credentials, ledger: Ledger) -> None:
    """Add the routes to the application."""
    keys, tokens, revocations = credentials.keys, credentials.tokens, credentials.revocations

    @api.get("/api/v1/keys", **answers(list[ApiKeyView], "credentials"))
    async def list_keys(actor: Actor, limit: Limit = None, after: After = "") -> list[dict[str, Any]]:
        """Agents' API keys, by subject."""
        return await asyncio.to_thread(_key_views, keys.keys, actor, limit, after)

    @api.post("/api/v1/keys", **answers(NewKey, "credentials"))
    async def create_key(request: CreateKey, actor: Actor) -> dict[str, Any]:
        """Make an API key. The response is the only place where it is ever shown."""
        if bool(request.agent) == bool(request.fleet):
            raise Refused([Problem("request", 0, "agent", "expected either agent or fleet")])
        key, secret = await keys.create(
            KeyRequest(
                request.agent or request.fleet, bool(request.agent), request.labels, request.regions, request.expires_s
            ),
            actor=actor,
        )
        return {**_key_view(key), "key": secret}

    @api.post("/api/v1/keys/{key_id}/rotate", **answers(NewKey, "credentials"))
    async def rotate_key(key_id: str, request: RotateKey, actor: Actor) -> dict[str, Any]:
        """Replace a key by a new one of the same subject. Both are accepted for a while."""
        key, secret = await keys.rotate(key_id, request.overlap_s, actor=actor)
        return {**_key_view(key), "key": secret}

    @api.delete("/api/v1/keys/{key_id}", **answers(Done, "credentials"))
    async def delete_key(key_id: str, actor: Actor) -> dict[str, str]:
        """Delete a key. Nodes refuse it and close its sessions."""
        await keys.delete(key_id, actor=actor)
        return {"kind": "ApiKey", "name": key_id, "action": "deleted"}

    @api.get("/api/v1/tokens", **answers(list[TokenView], "credentials"))
    async def list_tokens(actor: Actor) -> list[dict[str, Any]]:
        """People's tokens, by owner; with a scope, only your own."""
        known = [t for t in ledger.state.tokens.values() if _is_shown(t, actor)]
        return [_token_view(token) for token in sorted(known, key=lambda token: (token.owner, token.name, token.id))]

    @api.post("/api/v1/tokens", **answers(NewToken, "credentials"))
    async def create_token(request: CreateToken, actor: Actor) -> dict[str, Any]:
        """Make a token that may do at most what you may. The response is the only place where it is ever shown."""
        token, secret = await tokens.create(
            TokenRequest(
                request.name,
                Grant(request.role, request.scope),
                request.expires_s,
                request.owner,
                request.on_nodes,
            ),
            actor=actor,
        )
        return {**_token_view(token), "token": secret}

    @api.delete("/api/v1/tokens/{token_id}", **answers(Done, "credentials"))
    async def delete_token(token_id: str, actor: Actor) -> dict[str, str]:
        """Delete a token, or end a session: your own, or anybody's if you are an admin."""
        if token_id.startswith("session-"):
            await credentials.sessions.end(token_id, actor=actor)
        else:
            await tokens.delete(token_id, actor=actor)
        return {"kind": "Token", "name": token_id, "action": "deleted"}

    @api.get("/api/v1/revocations", **answers(list[RevocationView], "credentials"))
    async def list_revocations() -> list[dict[str, Any]]:
        """What is revoked, oldest first."""
        known = ledger.state.revocations.values()
        return [_revocation_view(r) for r in sorted(known, key=lambda r: (r.at_ms, r.id))]

    @api.get("/api/v1/revocations/{revocation_id}", **answers(RevocationView, "credentials"))
    async def get_revocation(revocation_id: str) -> dict[str, Any]:
        """One revocation, and the regions where it is in force."""
        found = revocations.get(revocation_id)
        return {**_revocation_view(found), "regions": [reach.plain() for reach in revocations.reach()]}

    @api.post("/api/v1/revocations", **answers(RevocationView, "credentials"))
    async def create_revocation(request: CreateRevocation, actor: Actor) -> dict[str, Any]:
        """Refuse a credential in every region from now on, also on open connections."""
        revocation = await revocations.revoke(request.kind, request.value, request.reason, actor=actor)
        return {**_revocation_view(revocation), "known": await revocations.is_known(revocation)}

    @api.delete("/api/v1/revocations/{revocation_id}", **answers(Done, "credentials"))
    async def delete_revocation(revocation_id: str, actor: Actor) -> dict[str, str]:
        """Take a revocation back."""
        await revocations.unrevoke(revocation_id, actor=actor)
        return {"kind": "Revocation", "name": revocation_id, "action": "deleted"}


def _key_views(keys: ApiKeys, actor: access.Actor, limit: int | None, after: str) -> list[dict[str, Any]]:
    shown = [key for key in keys if actor.grants is None or actor.grants.has(key.labels)]
    ids = [{"id": key.id} for key in sorted(shown, key=lambda key: (key.subject, key.created_ms, key.id))]
    page = behind(ids, after, lambda row: str(row["id"]))[:limit]
    return [_key_view(keys.find(row["id"])) for row in page]


def _is_shown(token: Token, actor: access.Actor) -> bool:
    return actor.grants is None or not actor.grants.is_scoped or token.owner == actor.identity


def _key_view(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "subject": key.subject,
        "kind": "agent" if key.is_single else "fleet",
        "labels": dict(key.labels),
        "regions": list(key.regions),
        "created": rfc3339(key.created_ms),
        "created_by": key.created_by,
        "expires": rfc3339(key.expires_ms),
        "replaced_by": key.replaced_by,
    }


def _token_view(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "owner": token.owner,
        "role": token.grant.role.value,
        "scope": dict(token.grant.scope),
        "on_nodes": token.on_nodes,
        "created": rfc3339(token.created_ms),
        "created_by": token.created_by,
        "expires": rfc3339(token.expires_ms),
        "made_with": token.made_with,
    }


def _revocation_view(revocation: Revocation) -> dict[str, Any]:
    return {
        "id": revocation.id,
        "kind": revocation.kind.value,
        "value": revocation.value,
        "reason": revocation.reason,
        "by": revocation.by,
        "at": rfc3339(revocation.at_ms),
    }

"""Routes about the caller: who you are, and what you may do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query

from relay.control.access.roles import Verb
from relay.control.api.caller import Actor
from relay.control.api.models import Answered, AuthConfig, WhoAmI, answers
from relay.control.api.people import People
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_name
from relay.errors import Forbidden
from relay.fleet.view import rfc3339


def add_auth_routes(api: FastAPI, people: People, ledger: Ledger) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/auth/config", **answers(AuthConfig, "auth"))
    async def get_auth_config() -> dict[str, Any]:
        """How people authenticate."""
        return {"type": "token" if people.required else "none"}

    @api.get("/api/v1/auth/whoami", **answers(WhoAmI, "auth"))
    async def who_am_i(actor: Actor) -> dict[str, Any]:
        """Whom the server takes you for."""
        token = ledger.state.tokens.get(actor.credential)
        grant = actor.grant
        return {
            "user": actor.name,
            "role": grant.role.value if grant is not None else "admin",
            "scope": dict(grant.scope) if grant is not None else {},
            "credential": actor.credential,
            "expires": rfc3339(token.expires_ms) if token is not None else None,
        }

    @api.get("/api/v1/auth/can-i", **answers(Answered, "auth"))
    async def can_i(
        actor: Actor,
        verb: Verb,
        kind: Annotated[str, Query(max_length=64, description="a kind of documents")] = "",
        name: Annotated[str, Query(max_length=256, description="the name of one")] = "",
    ) -> dict[str, Any]:
        """Whether you may do something at all, or to one document."""
        grant = actor.grant
        if grant is not None and not grant.allows(verb):
            return {"allowed": False, "reason": f"the role {grant.role.value} does not have the verb {verb.value}"}
        try:
            if verb is not Verb.READ:
                check_name(actor, ledger.state, kind, name)
        except Forbidden as error:
            return {"allowed": False, "reason": str(error)}
        return {"allowed": True, "reason": ""}

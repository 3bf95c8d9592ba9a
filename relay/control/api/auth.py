"""Routes about the caller: who you are, and what you may do."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import FastAPI, Query

from relay.control.access.roles import Grant, Role, Verb
from relay.control.access.sessions import Session
from relay.control.api.caller import Actor
from relay.control.api.guards import objection_to
from relay.control.api.models import Answered, AuthConfig, WhoAmI, answers
from relay.control.api.people import People
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_name
from relay.errors import Forbidden, Problem, Refused
from relay.fleet.view import rfc3339
from relay.policy.kinds import KINDS


def add_auth_routes(api: FastAPI, people: People, ledger: Ledger, *, has_device_flow: bool) -> None:
    """Add the routes to the application.

    Args:
        has_device_flow: whether people may log in on another device.
    """

    @api.get("/api/v1/auth/config", **answers(AuthConfig, "auth"))
    async def get_auth_config() -> dict[str, Any]:
        """How people authenticate."""
        return {"type": people.kind, "device_flow": has_device_flow}

    @api.get("/api/v1/auth/whoami", **answers(WhoAmI, "auth"))
    async def who_am_i(actor: Actor) -> dict[str, Any]:
        """Whom the server takes you for."""
        state, grants = ledger.state, actor.grants
        kept = state.tokens.get(actor.credential) or state.sessions.get(actor.credential)
        each = grants.each if grants is not None else (Grant(Role.ADMIN),)
        return {
            "user": actor.name,
            "role": ", ".join(dict.fromkeys(grant.role.value for grant in each)),
            "scope": dict(each[0].scope) if len(each) == 1 else {},
            "grants": [{"role": grant.role.value, "scope": dict(grant.scope)} for grant in each],
            "groups": list(kept.groups) if isinstance(kept, Session) else [],
            "credential": actor.credential,
            "expires": rfc3339(kept.expires_ms) if kept is not None else None,
        }

    @api.get("/api/v1/auth/can-i", **answers(Answered, "auth"))
    async def can_i(
        actor: Actor,
        verb: Verb,
        kind: Annotated[str, Query(max_length=64, description="a kind of documents")] = "",
        name: Annotated[str, Query(max_length=256, description="the name of one")] = "",
    ) -> dict[str, Any]:
        """Whether you may do something at all, or to one document."""
        grants = actor.grants
        if kind and kind not in KINDS:
            raise Refused([Problem("request", 0, "kind", f"{kind} is not one of {', '.join(KINDS)}")])
        if grants is not None and (reason := objection_to(grants, verb)):
            return {"allowed": False, "reason": reason}
        able = dataclasses.replace(actor, grants=grants.to(verb)) if grants is not None else actor
        try:
            if verb is not Verb.READ:
                check_name(able, ledger.state, kind, name)
        except Forbidden as error:
            return {"allowed": False, "reason": str(error)}
        return {"allowed": True, "reason": ""}

"""Routes by which people log in at an OpenID provider, and log out."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field

from relay.auth.openid import Person
from relay.control.api.caller import Actor
from relay.control.api.models import Done, LoginView, RequestBody, answers
from relay.control.api.people import People
from relay.control.credentials.logins import Logins, Waiting
from relay.control.credentials.sessions import SessionRegistry
from relay.errors import Conflict, Forbidden, Problem, Refused
from relay.fleet.view import rfc3339
from relay.observe.metrics import ControlPlaneMetrics

_NOT_HERE = "people do not log in here: admin.auth.type is not oidc; use a token"


class Login(RequestBody):
    """Begins a login (`redirect_uri`, or `device`), or goes on with one (`login`, and `code` of the redirect)."""

    redirect_uri: str = Field(default="", max_length=256, description="http://127.0.0.1:PORT/callback")
    device: bool = Field(default=False, description="log in on another device")
    login: str = Field(default="", max_length=128, description="from the first answer")
    code: str = Field(default="", max_length=4096)
    state: str = Field(default="", max_length=128)
    iss: str = Field(default="", max_length=1024)


def add_login_routes(
    api: FastAPI, logins: Logins | None, sessions: SessionRegistry, people: People, metrics: ControlPlaneMetrics
) -> None:
    """Add the routes to the application."""

    @api.post("/api/v1/auth/login", **answers(LoginView, "auth"))
    async def log_in(login: Login, request: Request) -> dict[str, Any]:
        """Log in at the OpenID provider. Each answer says what comes next."""
        if logins is None or people.kind != "oidc":
            raise Conflict(_NOT_HERE)
        address = request.client.host if request.client is not None else ""
        try:
            return await _step(logins, login, address)
        except Forbidden:
            metrics.denied["login"] += 1
            raise

    async def _step(logins: Logins, login: Login, address: str) -> dict[str, Any]:
        if login.login and login.code:
            return await _session(await logins.finish(login.login, login.code, login.state, login.iss), address)
        if login.login:
            try:
                return await _session(await logins.poll(login.login), address)
            except Waiting as waiting:
                return {"login": login.login, "wait_s": waiting.after_s}
        if login.device:
            secret, made = await logins.begin_device(address)
            return {
                "login": secret,
                "user_code": made.user_code,
                "verification_uri": made.uri,
                "verification_uri_complete": made.complete_uri or None,
                "wait_s": made.interval_s,
            }
        if not login.redirect_uri:
            raise Refused([Problem("request", 0, "redirect_uri", "expected redirect_uri, device or login")])
        secret, url = await logins.begin(login.redirect_uri, address)
        return {"login": secret, "url": url}

    async def _session(person: Person, address: str) -> dict[str, Any]:
        session, token = await sessions.begin(person, address=address)
        return {"token": token, "user": session.user, "expires": rfc3339(session.expires_ms)}

    @api.post("/api/v1/auth/logout", **answers(Done, "auth"))
    async def log_out(actor: Actor) -> dict[str, str]:
        """End your session. A token is deleted instead."""
        await sessions.end(actor.credential, actor=actor)
        return {"kind": "Session", "name": actor.credential, "action": "ended"}

"""Checks that every request passes before it reaches its route: who it is, whether they may, whether it is well formed.

Credentials are only taken from the Authorization header, so no page of another site can use somebody's. Where nobody needs
one, these checks keep such pages out: writes must be application/json, which they cannot send without a preflight, and the
Host must be one of ours.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request, Response

from relay.auth.addresses import is_own_host
from relay.control.access.actor import Actor
from relay.control.access.roles import Grants, Verb
from relay.control.api.people import People
from relay.control.api.problems import methods_of, problem, route_of
from relay.control.api.verbs import ANYBODY, OWN, verb_of
from relay.control.condition import Condition
from relay.errors import Forbidden, Problem, Refused

_STALE = "X-OpAMP-Relay-Stale"
"""The header on all responses while the database cannot be written: why the data may be out of date."""
_NO_CHANGE_PATHS = frozenset({"/api/v1/diff", "/api/v1/epoch"})
"""Paths of POST requests that do not change policy."""
_MAX_UNKNOWN_BYTES = 16 << 10
_BODY_S = 10.0
"""How much somebody without a credential may send, and how long that may take."""
_PROBES = frozenset({"/health", "/ready"})
_NO_CHANGE_PREFIXES = ("/api/v1/nodes/", "/api/v1/uploads/", "/api/v1/auth/")
"""Prefixes of paths that do not change policy."""


def add_guards(api: FastAPI, people: People, max_body_bytes: int, own_host: bool, condition: Condition) -> None:
    """Add the checks to the application.

    Args:
        own_host: whether requests must name this machine as their host.
    """

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if own_host and not is_own_host(request.headers.get("host", "")):
            return problem(403, "Host is not one of this server's")
        refusal = await _identify(api, people, request)
        if refusal is not None:
            return refusal
        if request.method in ("POST", "PUT", "PATCH") and (
            not (methods := methods_of(api, request)) or request.method in methods
        ):
            # A browser page of another site cannot send either type without a preflight.
            expected = "application/octet-stream" if request.method == "PATCH" else "application/json"
            if request.headers.get("content-type", "").partition(";")[0].strip() != expected:
                return problem(415, f"Content-Type must be {expected}")
            if "transfer-encoding" in request.headers:
                return problem(411, "Content-Length is required, and Transfer-Encoding is not allowed")
            length = request.headers.get("content-length", "")
            if not length.isdigit():
                return problem(411, "Content-Length is required")
            is_known = isinstance(getattr(request.state, "actor", None), Actor) or not people.required
            most = max_body_bytes if is_known else _MAX_UNKNOWN_BYTES
            if int(length) > most:
                return problem(413, f"the body is larger than {most} bytes")
            if not is_known:
                try:
                    async with asyncio.timeout(_BODY_S):
                        await request.body()
                except TimeoutError:
                    return problem(408, "the body did not arrive in time")
        is_change = request.method in ("POST", "PUT", "PATCH", "DELETE") and request.url.path not in _NO_CHANGE_PATHS
        if is_change and not request.url.path.startswith(_NO_CHANGE_PREFIXES) and condition.refusal:
            return problem(409, condition.refusal)
        answer = await call_next(request)
        actor = getattr(request.state, "actor", None)
        if request.method == "GET" and isinstance(actor, Actor):
            # Each answer of this middleware is a stream.
            answer.body_iterator = _while_current(answer.body_iterator, people, actor)  # type: ignore[attr-defined]
        if condition.unwritable:  # reports are not stored either
            answer.headers[_STALE] = condition.unwritable.encode("ascii", "replace").decode()
        return answer

    @api.exception_handler(Forbidden)
    async def forbidden(request: Request, error: Forbidden) -> Response:
        actor = getattr(request.state, "actor", None)
        if isinstance(actor, Actor):
            await people.deny(actor, f"{request.method} {request.url.path}", str(error))
        return problem(403, str(error))


async def _while_current(body: AsyncIterator[bytes], people: People, actor: Actor) -> AsyncIterator[bytes]:
    """The body of an answer, broken off when the credential of its request ends."""
    async for part in body:
        if not people.is_current(actor):
            raise Forbidden("the credential of this request has ended")
        yield part


async def _identify(api: FastAPI, people: People, request: Request) -> Response | None:
    """Find out who makes a request and whether they may. Returns the refusal; None if there is none."""
    ip = request.client.host if request.client is not None else ""
    if not people.admits(ip):
        return problem(403, "this address may not call")
    route = route_of(api, request)
    template = route.path if route is not None else ""
    if not people.required or template in _PROBES or (request.method, template) in ANYBODY:
        return None
    actor = await people.find(request.headers.getlist("authorization"), ip)
    if actor is None:
        refusal = problem(401, "a valid token is required: Authorization: Bearer TOKEN")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal
    if "x-opamp-actor" in request.headers:
        return problem(400, "X-OpAMP-Actor is not accepted: the credential says who you are")
    request.state.actor = actor
    if people.is_too_fast(actor):
        refusal = problem(429, "too many requests with this credential; try again in a second")
        refusal.headers["Retry-After"] = "1"
        return refusal
    if route is None or actor.grants is None or (request.method, template) in OWN:
        return None
    verb = verb_of(request.method, template, request.url.path)
    reason = objection_to(actor.grants, verb)
    if not reason and verb is not None:
        # From here on, only what allows this counts: another grant's scope must not widen it.
        request.state.actor = dataclasses.replace(actor, grants=actor.grants.to(verb))
        return None
    await people.deny(actor, f"{request.method} {request.url.path}", reason)
    return problem(403, reason)


def objection_to(grants: Grants, verb: Verb | None) -> str:
    """Why grants do not allow a verb; empty if they do. Which agents it concerns is checked later."""
    if verb is None or not grants.allows(verb):
        needed = f"it needs the verb {verb.value}" if verb is not None else "no role may"
        return f"the {grants.described_roles} may not do this: {needed}"
    if verb is Verb.ADMIN and not grants.is_admin:
        return "this concerns all agents: it needs a token without a scope"
    return ""


async def only_known_parameters(request: Request) -> None:
    """Refuse unknown and repeated query parameters: a mistyped filter must not match everything."""
    route = request.scope["route"]
    parameters = {field.alias for field in route.dependant.query_params}
    unknown = sorted(set(request.query_params) - parameters)
    repeated = sorted({n for n in parameters if len(request.query_params.getlist(n)) > 1} - {"label"})
    if repeated:
        raise Refused([Problem("request", 0, name, "is given more than once") for name in repeated])
    if unknown:
        names = ", ".join(sorted(parameters)) or "none"
        raise Refused(
            [Problem("request", 0, name, f"unknown parameter; the parameters are: {names}") for name in unknown]
        )

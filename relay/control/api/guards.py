"""Checks that every request passes before it reaches its route.

People cannot be authenticated yet, so the API serves loopback only, and these checks keep out browser pages of other sites:
writes must be application/json, which such a page cannot send without a preflight, and the Host must be one of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from relay.control.api.problems import methods_of, problem
from relay.control.condition import Condition
from relay.errors import Problem, Refused

_STALE = "X-OpAMP-Relay-Stale"
"""The header on all responses while the database cannot be written: why the data may be out of date."""
_NO_CHANGE_PATHS = frozenset({"/api/v1/diff", "/api/v1/epoch"})
"""Paths of POST requests that do not change policy."""
_NO_CHANGE_PREFIXES = ("/api/v1/nodes/", "/api/v1/uploads/")
"""Prefixes of paths that do not change policy."""


def add_guards(
    api: FastAPI, max_body_bytes: int, hosts: Callable[[], frozenset[str]] | None, condition: Condition
) -> None:
    """Add the checks to the application.

    Args:
        hosts: returns the accepted values of the Host header; None to accept any.
    """

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if hosts is not None and request.headers.get("host", "") not in hosts():
            return problem(403, "Host is not one of this server's")
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
            if int(length) > max_body_bytes:
                return problem(413, f"the body is larger than {max_body_bytes} bytes")
        is_change = request.method in ("POST", "PUT", "PATCH", "DELETE") and request.url.path not in _NO_CHANGE_PATHS
        if is_change and not request.url.path.startswith(_NO_CHANGE_PREFIXES) and condition.refusal:
            return problem(409, condition.refusal)
        answer = await call_next(request)
        if condition.unwritable:  # reports are not stored either
            answer.headers[_STALE] = condition.unwritable.encode("ascii", "replace").decode()
        return answer


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

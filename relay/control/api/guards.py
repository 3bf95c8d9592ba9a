"""What every request passes before its route, whoever asks.

Until people can be authenticated the API serves loopback only, and a browser's page of another site cannot reach it: writes
must be application/json, which such a page may not send unasked, and the Host must be one of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from relay.control.api.problems import methods_of, problem
from relay.control.condition import Condition
from relay.errors import Problem, Refused

_STALE = "X-OpAMP-Relay-Stale"
"""Header of all answers while nothing can be stored: why what is shown may be out of date."""
_NO_CHANGES = frozenset({"/api/v1/diff", "/api/v1/epoch"})
"""What is posted and changes no policy."""
_NO_POLICY = ("/api/v1/nodes/", "/api/v1/uploads/")
"""Likewise, all below them."""


def add_guards(
    api: FastAPI, max_body_bytes: int, hosts: Callable[[], frozenset[str]] | None, condition: Condition
) -> None:
    """Put them into the application.

    Args:
        hosts: values of the Host header that are ours; None to take any.
    """

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if hosts is not None and request.headers.get("host", "") not in hosts():
            return problem(403, "Host is not one of this server's")
        if request.method in ("POST", "PUT", "PATCH") and (
            not (methods := methods_of(api, request)) or request.method in methods
        ):
            # Neither can be sent by a browser's page of another site without asking.
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
        is_change = request.method in ("POST", "PUT", "PATCH", "DELETE") and request.url.path not in _NO_CHANGES
        if is_change and not request.url.path.startswith(_NO_POLICY) and condition.refusal:
            return problem(409, condition.refusal)
        answer = await call_next(request)
        if condition.unwritable:  # reports that are not stored do not count either
            answer.headers[_STALE] = condition.unwritable.encode("ascii", "replace").decode()
        return answer


async def only_known_parameters(request: Request) -> None:
    """A filter that nobody knows must not be taken for one that matches everything."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    twice = sorted({n for n in known if len(request.query_params.getlist(n)) > 1} - {"label"})
    if twice:
        raise Refused([Problem("request", 0, name, "is given more than once") for name in twice])
    if unknown:
        has = ", ".join(sorted(known)) or "none"
        raise Refused([Problem("request", 0, name, f"unknown parameter; there are: {has}") for name in unknown])

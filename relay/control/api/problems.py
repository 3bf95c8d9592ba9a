"""Turns errors into responses: problem+json (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from relay.errors import Outcome, Refused, RelayError

STATUS = {
    Outcome.BAD_REQUEST: 422,
    Outcome.TOO_LARGE: 413,
    Outcome.UNAUTHENTICATED: 401,
    Outcome.DENIED: 403,
    Outcome.NOT_FOUND: 404,
    Outcome.CONFLICT: 409,
    Outcome.UNAVAILABLE: 503,
    Outcome.INTERNAL: 500,
}
"""Outcome → HTTP status of the admin API."""
_MAX_LISTED = 20
"""How many mistakes of one request are listed."""


def add_problem_handlers(api: FastAPI) -> None:
    """Add the exception handlers to the application."""

    @api.exception_handler(RelayError)
    async def relay_error(_: Request, error: RelayError) -> Response:
        details = []
        if isinstance(error, Refused):
            details = [
                {"source": p.source, "line": p.line, "path": p.path, "reason": p.reason, "text": str(p)}
                for p in error.problems
            ]
        return problem(STATUS[error.outcome], str(error), problems=details)

    @api.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return problem(500, f"internal error ({type(error).__name__}); see the log")

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer.headers["Allow"] = ", ".join(methods_of(api, request))
        return answer

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        details = [
            {"source": "request", "line": 0, "path": ".".join(map(str, e["loc"])), "reason": e["msg"]}
            for e in error.errors()[:_MAX_LISTED]
        ]
        for detail in details:
            detail["text"] = f"request: {detail['path']}: {detail['reason']}"
        return problem(422, "the request is invalid", problems=details)


def methods_of(api: FastAPI, request: Request) -> list[str]:
    """The methods that the path of a request allows."""
    return sorted(
        {
            method
            for route in api.routes
            if isinstance(route, Route) and route.path_regex.match(request.url.path)
            for method in route.methods or ()
        }
    )


def route_of(api: FastAPI, request: Request) -> Route | None:
    """The route that will answer a request; None if there is none."""
    routes = (route for route in api.routes if isinstance(route, Route) and request.method in (route.methods or ()))
    return next((route for route in routes if route.path_regex.match(request.url.path)), None)


def problem(status: int, detail: str, *, problems: list[dict[str, Any]] | None = None) -> Response:
    """An RFC 9457 response; `problems` lists every problem."""
    content: dict[str, Any] = {"type": "about:blank", "status": status, "detail": detail}
    if problems:
        content["problems"] = problems
    return JSONResponse(content, status_code=status, media_type="application/problem+json")

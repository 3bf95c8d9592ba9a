"""The join port: HTTPS for nodes that join or renew. gRPC's server cannot ask for certificates of some callers only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field

from relay.aio.clock import Clock
from relay.auth.failures import Failures
from relay.control.api.models import RequestBody
from relay.control.api.problems import add_problem_handlers, problem
from relay.control.join.registry import JoinRegistry
from relay.control.keys.trust import Trust
from relay.errors import Refused

_MAX_BODY_BYTES = 64 << 10
_MAX_FAILURES = "too many refused requests from this address; try again in a minute"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class JoinRequest(RequestBody):
    """A node asks to be admitted."""

    id: str = Field(max_length=64)
    secret: str = Field(max_length=256)
    csr: str = Field(max_length=16 << 10)
    name: Name


class RenewRequest(RequestBody):
    """A node asks for another certificate."""

    csr: str = Field(max_length=16 << 10)


def build_join(trust: Trust, registry: JoinRegistry, clock: Clock) -> FastAPI:
    """Build the ASGI application."""
    join = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    add_problem_handlers(join)
    failures = Failures()

    @join.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        ip = request.client.host if request.client is not None else ""
        if request.method == "POST":
            if failures.is_over(ip, clock.monotonic()):
                return problem(429, _MAX_FAILURES)
            length = request.headers.get("content-length", "")
            if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
                return problem(413, f"Content-Length is required, and at most {_MAX_BODY_BYTES}")
        answer = await call_next(request)
        if answer.status_code == 403:
            failures.add(ip, clock.monotonic())
        return answer

    @join.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        paths = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        return problem(400, f"the request is malformed: {paths}")

    @join.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return problem(400, str(error))

    def trusted() -> dict[str, Any]:
        return {"key_sets": [item.plain() for item in trust.key_sets]}

    @join.get("/v1/trust")
    async def get_trust() -> dict[str, Any]:
        return {**trusted(), "unix_ms": clock.unix_ms()}

    def admitted(certificate: bytes) -> dict[str, Any]:
        return {"certificate": certificate.decode(), "ca": list(trust.current.authorities), **trusted()}

    @join.post("/v1/join")
    async def post_join(content: JoinRequest, request: Request) -> dict[str, Any]:
        address = request.client.host if request.client is not None else ""
        return admitted(await registry.join(content.id, content.secret, content.csr, content.name, address=address))

    @join.post("/v1/renew")
    async def post_renew(content: RenewRequest, request: Request) -> dict[str, Any]:
        address = request.client.host if request.client is not None else ""
        return admitted(await registry.renew(content.csr, address=address))

    return join

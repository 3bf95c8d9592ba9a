"""Agents over plain HTTP, and the other routes of the agent ports, on aiohttp's server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web, web_response
from aiohttp.web_server import Server

from relay.auth.addresses import is_own_host
from relay.auth.principal import Principal, Reason
from relay.errors import AgentError, Outcome, Overloaded, RelayError, TooLarge
from relay.ids import parse_uid
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.opamp import body
from relay.opamp.session import Session
from relay.transport.authentication import Authenticator
from relay.transport.head import SERVER, Head, Refusal
from relay.transport.peers import Origin, TrustedProxies, address_of, certificate_of, joined, scheme_of
from relay.transport.ports import Agents, AssemblyBudget, Caller, CloseReason
from relay.transport.upgrade import Upgrades

_log = log.get("opamp-relay.http")
PATH = "/v1/opamp"
CONTENT_TYPE = "application/x-protobuf"
"""Without parameters: the Node.js client takes any other value for a failure."""
_GZIP_FROM_BYTES = 1024
_MIN_HEADER_BYTES = 5
"""The shortest header is `a:b` and a line break."""
# aiohttp answers malformed requests by itself; those responses get our Server header too.
vars(web_response)["SERVER_SOFTWARE"] = SERVER

STATUS = {
    Outcome.BAD_REQUEST: 400,
    Outcome.TOO_LARGE: 413,
    Outcome.UNAUTHENTICATED: 401,
    Outcome.DENIED: 403,
    Outcome.NOT_FOUND: 404,
    Outcome.CONFLICT: 409,
    Outcome.UNAVAILABLE: 503,
    Outcome.INTERNAL: 500,
}
"""Outcome of a request → its HTTP status."""


class Polling:
    """The one connection that all HTTP agents share. They poll when they like; nothing can be pushed to them."""

    transport_name = "http"
    header = b""
    writable = False
    session: Session | None = None
    caller = Caller("")

    def send(self, content: bytes) -> None:
        """Never called: the connection is not writable."""
        raise AssertionError("nothing can be pushed to an HTTP agent")

    def close(self, reason: CloseReason) -> None:
        """Nothing to close between polls."""

    def ping(self, answered: Callable[[], None]) -> None:
        """Nothing to ping between polls."""

    def probe(self, now: float, ping_s: float, idle_s: float) -> None:
        """Nothing to ping between polls."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits on a request; see `relay.settings.parts.Limits`."""

    max_message_bytes: int
    body_timeout_s: float
    keepalive_s: float
    compress: bool


class HttpAgents:
    """The handler of `POST /v1/opamp`."""

    def __init__(
        self,
        agents: Agents,
        settings: HttpSettings,
        proxies: TrustedProxies,
        upgrades: Upgrades,
        authenticator: Authenticator,
        *,
        budget: AssemblyBudget,
        metrics: NodeMetrics,
    ) -> None:
        self.polling = Polling()
        self._proxies = proxies
        self._upgrades = upgrades
        self._authenticator = authenticator
        self._agents = agents
        self._settings = settings
        self._budget = budget
        self._metrics = metrics

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one poll. Only reading the body waits; the answer comes from memory."""
        if request.method == "GET":
            head = Head(request.method, request.path, joined(request.headers))
            if head.is_upgrade:
                return await self._upgrades.take_from(request, head)
        if request.method != "POST":
            self._metrics.refused["method"] += 1
            if request.method == "GET":
                return web.Response(
                    status=426, headers={"Upgrade": "websocket"}, text="upgrade to WebSocket, or use POST\n"
                )
            return web.Response(status=405, headers={"Allow": "POST"}, text="the method must be POST\n")
        origin = self._origin(request)
        found = self._authenticate(request, origin)
        if isinstance(found, Refusal):
            self._metrics.refused[found.reason] += 1
            await self._authenticator.wait(found)
            response = web.Response(status=found.status, headers=dict(found.headers), text=f"{found.reason}\n")
            response.force_close()
            return response
        return await self._exchange(request, origin.caller._replace(principal=found))

    def _origin(self, request: web.Request) -> Origin:
        transport = request.transport
        return self._proxies.peer(address_of(transport), joined(request.headers), scheme=scheme_of(transport))

    def _authenticate(self, request: web.Request, origin: Origin) -> Principal | Refusal | None:
        """Whose request this is. A connection may carry requests of many agents, so each one is asked."""
        if not self._authenticator.is_required:
            return None
        authorizations = request.headers.getall("Authorization", [])
        if len(authorizations) > 1:
            return Refusal(400, "authorization_twice")
        authorization = authorizations[0] if authorizations else None
        ip = origin.address[0]
        found = self._authenticator.authenticate(authorization, certificate_of(request.transport), ip, origin.remote)
        return self._authenticator.refusal(found, ip) if isinstance(found, Reason) else found

    async def _exchange(self, request: web.Request, caller: Caller) -> web.Response:
        if request.content_type != CONTENT_TYPE:
            self._metrics.refused["content_type"] += 1
            return web.Response(status=415, text=f"Content-Type must be {CONTENT_TYPE}\n")
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("gzip", "identity"):
            self._metrics.refused["content_encoding"] += 1
            return web.Response(status=415, text="Content-Encoding must be gzip, identity or absent\n")
        try:
            content = await self._read(request)
        except TimeoutError:
            self._metrics.refused["body_timeout"] += 1
            return web.Response(status=408, headers={"Connection": "close"}, text="the body did not arrive in time\n")
        except RelayError as error:
            self._metrics.refused[error.outcome.value] += 1
            return _refusal(error)
        self._metrics.messages_received += 1
        uid = b""
        try:
            if encoding == "gzip":
                content = body.inflate(content, self._settings.max_message_bytes)
            uid = body.uid_of_malformed(content) or _header_uid(request)
            reply = self._agents.receive(self.polling, caller, content)
        except (TooLarge, Overloaded) as error:
            self._metrics.refused[error.outcome.value] += 1
            return _refusal(error)
        except AgentError as error:
            # Status 200, because clients ignore the body of any other.
            self._metrics.bad_messages[error.outcome.value] += 1
            reply = body.error_body(uid or _header_uid(request), error)
        self._metrics.messages_sent += 1
        return self._answer(request, reply)

    async def _read(self, request: web.Request) -> bytes:
        limit = self._settings.max_message_bytes
        if (request.content_length or 0) > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        size = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while part := await request.content.readany():
                    size += len(part)
                    if size > limit:
                        raise TooLarge(f"the body is larger than {limit} bytes")
                    self._budget.take(len(part))
                    parts.append(part)
        finally:
            self._budget.give_back(sum(map(len, parts)))
        return b"".join(parts)

    def _answer(self, request: web.Request, reply: bytes) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE}
        if self._settings.compress and len(reply) >= _GZIP_FROM_BYTES and _accepts_gzip(request):
            reply = body.deflate(reply)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=reply, headers=headers)


def _refusal(error: RelayError) -> web.Response:
    headers = {"Connection": "close"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return web.Response(status=STATUS[error.outcome], headers=headers, text=f"{error}\n")


def _header_uid(request: web.Request) -> bytes:
    return parse_uid(request.headers.get("OpAMP-Instance-UID", "")) or b""


def _accepts_gzip(request: web.Request) -> bool:
    for item in request.headers.get("Accept-Encoding", "").split(","):
        name, _, quality = item.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return quality.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]
"""(method or `*`, path, handler)."""


async def serve(
    routes: list[Route], keepalive_s: float, max_header_bytes: int = 16 << 10, *, own_host: bool = False
) -> tuple[web.AppRunner, Server]:
    """Set up an aiohttp server that does not listen; the door hands it connections.

    Args:
        own_host: whether requests must name this machine as their host.
        max_header_bytes: limit for each line of a head, the request line included.

    Returns:
        (a runner that the caller cleans up, the protocol factory).
    """
    app = web.Application(middlewares=[_errors, _only_own_host] if own_host else [_errors])
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    app.on_response_prepare.append(_set_server)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=keepalive_s,
        auto_decompress=False,
        handle_signals=False,
        max_line_size=max_header_bytes,
        max_field_size=max_header_bytes,
        max_headers=max_header_bytes // _MIN_HEADER_BYTES,
    )
    await runner.setup()
    assert runner.server is not None
    return runner, runner.server


def bounded(server: Server, most: int) -> Callable[[], asyncio.Protocol]:
    """A protocol factory that closes the oldest connection for each one beyond `most`, so that nobody can block others."""

    def make() -> asyncio.Protocol:
        if len(open_ := server.connections) >= most:
            open_[0].force_close()
        return server()

    return make


@web.middleware
async def _only_own_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    # The door looks at the first request of a connection alone.
    if not is_own_host(request.headers.get("Host", "")):
        return web.Response(status=403, text="host\n")
    return await handler(request)


async def _set_server(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RelayError as error:
        return _refusal(error)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:
        _log.exception("request_failed", path=request.path)
        return web.Response(status=500, text="internal error\n")

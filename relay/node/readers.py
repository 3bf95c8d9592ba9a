"""People at a node that asks for credentials: who may read its API and metrics, by tokens that came as policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from relay.aio.clock import Clock
from relay.auth.principal import Principal
from relay.auth.secrets import TOKEN_FORM, person_digest
from relay.policy.access import Reader
from relay.transport.authentication import Authenticator
from relay.transport.http import Handler
from relay.transport.peers import TrustedProxies, address_of, certificate_of, joined

READER = web.RequestKey("reader", Reader)
"""Key of a request: who reads."""


class Readers:
    """Lets people read.

    Args:
        tokens: SHA-256 of a token → who it is.
    """

    def __init__(
        self,
        tokens: Callable[[], Mapping[bytes, Reader]],
        authenticator: Authenticator,
        proxies: TrustedProxies,
        *,
        clock: Clock,
    ) -> None:
        self._tokens = tokens
        self._authenticator = authenticator
        self._proxies = proxies
        self._clock = clock

    def guarded(self, handler: Handler) -> Handler:
        """A handler for people alone: 401 without a credential, 403 with an agent's."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            headers = request.headers.getall("Authorization", [])
            reader = self._reader(headers[0]) if len(headers) == 1 else None
            if reader is None:
                return await self._refuse(request, headers)
            request[READER] = reader
            return await handler(request)

        return guarded

    def _reader(self, authorization: str) -> Reader | None:
        found = person_digest(authorization, TOKEN_FORM)
        reader = self._tokens().get(found[1]) if found is not None else None
        return reader if reader is not None and self._clock.unix_ms() < reader.expires_ms else None

    async def _refuse(self, request: web.Request, headers: list[str]) -> web.StreamResponse:
        origin = self._proxies.peer(address_of(request.transport), joined(request.headers), scheme="http")
        ip = origin.address[0]
        authorization = ", ".join(headers) if headers else None  # two of them are none
        found = self._authenticator.authenticate(authorization, certificate_of(request.transport), ip, origin.remote)
        if isinstance(found, Principal):
            return web.Response(status=403, text="an agent's credential does not read this\n")
        assert found is not None  # this is only here where agents authenticate
        refusal = self._authenticator.refusal(found, ip)
        await self._authenticator.wait(refusal)
        return web.Response(status=refusal.status, headers=dict(refusal.headers), text=f"{refusal.reason}\n")


def may_see(request: web.Request, labels: Mapping[str, object]) -> bool:
    """Whether the person who reads may see an agent with these labels."""
    reader = request.get(READER)
    return reader is None or all(labels.get(key) == value for key, value in reader.scope.items())

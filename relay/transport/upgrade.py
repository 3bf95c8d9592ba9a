"""Upgrades connections to WebSocket: new ones, and ones that have already carried other requests.

Proxies that keep connections alive (nginx `keepalive`, HAProxy `http-reuse`) may send an upgrade on any of them. aiohttp
owns such a connection, and we take it over. aiohttp has no public API for that: the exact version is pinned, and
`tests/transport/test_upgrade.py` covers what we rely on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from relay.auth.principal import Reason
from relay.observe.metrics import NodeMetrics
from relay.transport.authentication import Authenticator
from relay.transport.head import Head, Refusal, full, upgrade_answer, upgrade_refusal
from relay.transport.peers import Address, TrustedProxies, address_of, certificate_of, scheme_of
from relay.transport.websocket import WebSocketFactory


class Proxied:
    """A transport from a proxy, with the client's address from the PROXY header."""

    def __init__(self, transport: asyncio.Transport, address: Address) -> None:
        self.transport = transport
        self._address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport's own, except for `peername`."""
        return self._address if name == "peername" else self.transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Upgrades:
    """Turns connections into WebSockets.

    Args:
        path: the only path that accepts WebSockets.
        retry_after_s: when clients should retry if the node is draining.
    """

    def __init__(
        self,
        websockets: WebSocketFactory,
        proxies: TrustedProxies,
        path: str,
        authenticator: Authenticator,
        *,
        retry_after_s: float,
        metrics: NodeMetrics,
    ) -> None:
        self._websockets = websockets
        self._proxies = proxies
        self._path = path
        self._authenticator = authenticator
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self.accepting = True
        """False while the node drains."""

    def take(self, head: Head, transport: asyncio.Transport, rest: bytes, address: Address) -> Refusal | None:
        """Accept an upgrade and hand the connection on, or return the refusal.

        Args:
            rest: bytes read after the head.
            address: the client's.
        """
        peer = self._proxies.peer(address, head.headers, scheme=scheme_of(transport))
        refusal = full("draining", self._retry_after_s) if not self.accepting else None
        refusal = refusal or upgrade_refusal(head, self._path, peer.host)
        if refusal is not None:
            self._metrics.refused[refusal.reason] += 1
            return refusal
        ip = peer.address[0]
        found = self._authenticator.authenticate(
            head.headers.get("authorization"), certificate_of(transport), ip, peer.remote
        )
        if isinstance(found, Reason):
            refusal = self._authenticator.refusal(found, ip)
            self._metrics.refused[refusal.reason] += 1
            return refusal
        transport.write(upgrade_answer(head))
        self._websockets.take_over(transport, rest, peer.caller._replace(principal=found))
        return None

    async def take_from(self, request: web.Request, head: Head) -> web.Response:
        """Like `take`, for a connection that aiohttp owns.

        The response is for aiohttp. After an upgrade it is never sent.
        """
        protocol: Any = request.protocol
        wrapped: Any = request.transport
        if wrapped is None or wrapped.is_closing():
            raise ConnectionResetError("the connection is closed")
        transport = wrapped.transport if isinstance(wrapped, Proxied) else wrapped
        protocol.transport = None  # otherwise it would close the transport
        try:
            refusal = self.take(head, transport, bytes(protocol._message_tail), address_of(wrapped))
        except BaseException:
            protocol.transport = wrapped  # it goes on being aiohttp's, with aiohttp's timeouts
            raise
        if refusal is not None:
            protocol.transport = wrapped
            await self._authenticator.wait(refusal)
            headers = dict([*refusal.headers, ("Connection", "close")])
            return web.Response(status=refusal.status, headers=headers, text=f"{refusal.reason}\n")
        protocol.connection_lost(None)
        return web.Response()

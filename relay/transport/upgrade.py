"""From a request for a WebSocket to a WebSocket: of a new connection, or of one that has carried other requests before.

Proxies that keep their connections to us (nginx `keepalive`, HAProxy `http-reuse`) send an upgrade on any of them. aiohttp
has such a connection then; it is taken from it. That is no public API of aiohttp: the exact version is pinned, and
`tests/transport/test_upgrade.py` holds what we rely on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from relay.observe.metrics import NodeMetrics
from relay.transport.head import Head, Refusal, full, upgrade_answer, upgrade_refusal
from relay.transport.peers import Address, TrustedProxies, address_of, scheme_of
from relay.transport.websocket import WebSocketFactory


class Proxied:
    """A transport whose other end is a proxy that said for whom it speaks."""

    def __init__(self, transport: asyncio.Transport, address: Address) -> None:
        self.transport = transport
        self._address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport's, but for the address."""
        return self._address if name == "peername" else self.transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Upgrades:
    """Makes connections WebSockets.

    Args:
        path: the only one that has WebSockets.
        retry_after_s: when who comes while the node drains is to come again.
    """

    def __init__(
        self,
        websockets: WebSocketFactory,
        proxies: TrustedProxies,
        path: str,
        *,
        retry_after_s: float,
        metrics: NodeMetrics,
    ) -> None:
        self._websockets = websockets
        self._proxies = proxies
        self._path = path
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self.accepting = True
        """False while the node drains."""

    def take(self, head: Head, transport: asyncio.Transport, rest: bytes, address: Address) -> Refusal | None:
        """Answer a request for a WebSocket and hand the connection on; the refusal where that may not be.

        Args:
            rest: what was read behind the head.
            address: of the other end.
        """
        peer = self._proxies.peer(address, head.headers, scheme=scheme_of(transport))
        refusal = full("draining", self._retry_after_s) if not self.accepting else None
        refusal = refusal or upgrade_refusal(head, self._path, peer.host)
        if refusal is not None:
            self._metrics.refused[refusal.reason] += 1
            return refusal
        transport.write(upgrade_answer(head))
        self._websockets.take_over(transport, rest, peer.caller)
        return None

    def take_from(self, request: web.Request, head: Head) -> web.Response:
        """As `take`, of a connection that is aiohttp's. The response is for aiohttp; of a taken one nobody hears it."""
        protocol: Any = request.protocol
        held: Any = request.transport
        if held is None or held.is_closing():
            raise ConnectionResetError("the connection is closed")
        transport = held.transport if isinstance(held, Proxied) else held
        protocol.transport = None  # else it would close what it loses
        refusal = self.take(head, transport, bytes(protocol._message_tail), address_of(held))
        if refusal is not None:
            protocol.transport = held
            headers = dict([*refusal.headers, ("Connection", "close")])
            return web.Response(status=refusal.status, headers=headers, text=f"{refusal.reason}\n")
        protocol.connection_lost(None)
        return web.Response()

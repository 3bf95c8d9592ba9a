"""Parses the head of an HTTP/1.1 request and answers WebSocket upgrades (RFC 9112, RFC 6455)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

SERVER = "opamp-relay"
"""The Server header of every response."""
_VERSION = "13"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""
_KEY_BYTES = 16
_SINGLE = frozenset({"authorization", "content-length", "host", "upgrade"})
"""Headers that two parties could read differently if they came twice."""
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")
"""Characters that no head may contain, and line ends that are not whole."""
_PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A request head."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case. Repeated headers are joined by commas."""
    query: str = ""

    def tokens(self, name: str) -> list[str]:
        """The tokens of a comma-separated header, in lower case."""
        return [token.strip().lower() for token in self.headers.get(name, "").split(",")]

    @property
    def is_upgrade(self) -> bool:
        """Whether the request asks for a WebSocket."""
        has_tokens = "websocket" in self.tokens("upgrade") and "upgrade" in self.tokens("connection")
        return has_tokens and self.method == "GET"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused."""

    status: int
    reason: str
    """The metric's label and the response's text."""
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    """How much later it is to be sent."""

    def answer(self) -> bytes:
        """The serialised response. It announces that the connection is closed."""
        body = f"{self.reason}\n"
        lines = [
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}",
            *(f"{name}: {value}" for name, value in self.headers),
            f"Server: {SERVER}",
            "Connection: close",
            "Content-Type: text/plain",
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def full(reason: str, retry_after_s: float) -> Refusal:
    """Refuse because there is no room now; the client should retry later."""
    return Refusal(503, reason, (("Retry-After", str(max(1, round(retry_after_s)))),))


def parse_head(raw: bytes) -> Head | None:
    """Parse a request head, given without the empty line that ends it. None if it is malformed."""
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return None
    headers: dict[str, str] = {}
    if _CONTROL.search(raw, 0) is not None:
        return None
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        name, value = name.lower(), value.strip()
        if name in _SINGLE and name in headers:
            return None
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    target = parts[1]
    if target.lower().startswith(("http://", "https://")):
        # A proxy may send the absolute form, and every server must accept it (RFC 9112, 3.2.2).
        scheme, _, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if not authority or not scheme:
            return None
        headers["host"] = authority
        target = slash + path or "/"
    if not target.startswith("/"):
        return None
    path, _, query = target.partition("?")
    return Head(parts[0], path, headers, query)


def upgrade_refusal(head: Head, path: str, host: str) -> Refusal | None:
    """Why a WebSocket upgrade is refused; None if it is accepted.

    Args:
        path: the only path that accepts WebSockets.
        host: the host under which the client reached us; see `relay.transport.peers`.
    """
    if head.path != path:
        return Refusal(404, "path")
    if head.headers.get("content-length", "0").strip("0") or "transfer-encoding" in head.headers:
        return Refusal(400, "upgrade_with_body")
    if _is_foreign_origin(head.headers.get("origin", ""), host):
        return Refusal(403, "origin")
    if head.headers.get("sec-websocket-version") != _VERSION:
        return Refusal(426, "websocket_version", (("Sec-WebSocket-Version", _VERSION), ("Upgrade", "websocket")))
    try:
        key = base64.b64decode(head.headers.get("sec-websocket-key", ""), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    return None if len(key) == _KEY_BYTES else Refusal(400, "websocket_key")


def upgrade_answer(head: Head) -> bytes:
    """The response that turns the connection into a WebSocket."""
    key = head.headers["sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nServer: {SERVER}\r\n\r\n"
    ).encode()


def _is_foreign_origin(origin: str, host: str) -> bool:
    """Whether a web page of another site sent the request. Agents send no Origin, and no page may pose as an agent."""
    try:
        origin_host = urlsplit(origin).hostname
        own_host = urlsplit(f"//{host}").hostname
    except ValueError:
        return True
    return origin_host is not None and origin_host != own_host

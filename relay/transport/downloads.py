"""Serves package files on the agent ports: `GET /v1/packages/SHA256?expires=…&signature=…`.

Over plain TCP, a `Sender` takes the socket and the kernel copies the file. Over TLS, which the kernel does not speak, the
event loop sends the file in small pieces, between answers to agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from aiohttp import web

from relay.transport.head import SERVER
from relay.transport.ranges import ByteRange, part_of
from relay.transport.sender import Job, Sender

PATH = "/v1/packages/"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 128 << 10
_PHRASES = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}


class Denied(Exception):
    """The file is not served. The text ends up in the agent's log."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class File:
    """A file that may be served."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Limits on downloads; see `relay.settings.parts.NodePackages`."""

    max_downloads: int
    stall_s: float
    total: int | None
    """Bytes a second of all downloads; None for no limit."""
    each: int | None
    """Bytes a second of one download; None for no limit."""


Find = Callable[[str, dict[str, str]], File]
"""(SHA-256, query) → the file. Raises Denied."""


class Downloads:
    """All downloads of a node. Call `start`, then `close`.

    Args:
        refused: counts requests answered with an error, by `download_STATUS`.
    """

    def __init__(self, find: Find, settings: DownloadSettings, *, refused: Counter[str]) -> None:
        self._find = find
        self._settings = settings
        self._sender = Sender(stall_s=settings.stall_s, total=settings.total, each=settings.each)
        self._over_tls = 0
        self._tls_bytes = 0
        self._tls_done = 0
        self._refused = refused

    @property
    def active(self) -> int:
        """Downloads in progress."""
        return self._sender.active + self._over_tls

    @property
    def sent_bytes(self) -> int:
        """Bytes of file content sent."""
        return self._sender.sent_bytes + self._tls_bytes

    @property
    def done(self) -> int:
        """Downloads that succeeded, range requests included."""
        return self._sender.done + self._tls_done

    @property
    def broken(self) -> int:
        """Downloads that agents broke off or did not read."""
        return self._sender.broken

    def start(self) -> None:
        """Start the sender's thread."""
        self._sender.start()

    async def close(self) -> None:
        """End all downloads. Agents resume at another node, or fail and are offered the file again."""
        await asyncio.to_thread(self._sender.stop)

    def _part(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[File, ByteRange]:
        path, _, query = target.partition("?")
        sha256 = path.removeprefix(PATH)
        if method not in ("GET", "HEAD"):
            raise Denied(405, "the method must be GET or HEAD")
        if _SHA256.fullmatch(sha256) is None:
            raise Denied(404, "no such file")
        if self.active >= self._settings.max_downloads:
            raise Denied(503, "too many downloads are in progress", retry_after_s=10)
        file = self._find(sha256, dict(parse_qsl(query, max_num_fields=10)))
        try:
            size = file.path.stat().st_size
        except OSError:
            raise Denied(503, "the file is no longer here", retry_after_s=30) from None
        return file, part_of(headers, size, sha256)

    def _refusal(self, denied: Denied) -> tuple[dict[str, str], bytes]:
        self._refused[f"download_{denied.status}"] += 1
        body = f"{denied}\n".encode()
        headers = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
        if denied.retry_after_s is not None:
            headers["Retry-After"] = str(denied.retry_after_s)
        return headers, body

    # ---- plain

    def take_over(self, transport: asyncio.Transport, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Answer a request on a plain connection. Takes over the connection and closes it after the answer."""
        try:
            file, part = self._part(method, target, headers)
        except (Denied, ValueError) as error:
            denied = error if isinstance(error, Denied) else Denied(404, "no such file")
            error_headers, body = self._refusal(denied)
            transport.write(_head(denied.status, error_headers) + (b"" if method == "HEAD" else body))
            transport.close()
            return
        head = _head(part.status, part.headers)
        if method == "HEAD" or not part.length:
            transport.write(head)
            transport.close()
            return
        # The event loop drops the connection; the sender goes on with a duplicate of its descriptor.
        try:
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # the connection is closed, or no descriptors are left
            transport.abort()
            return
        transport.abort()
        self._sender.submit(Job(connection, head, file.path, part.start, part.length))

    # ---- TLS

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request on a TLS connection."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            file, part = self._part(request.method, request.path_qs, headers)
        except (Denied, ValueError) as error:
            denied = error if isinstance(error, Denied) else Denied(404, "no such file")
            error_headers, body = self._refusal(denied)
            body = b"" if request.method == "HEAD" else body
            return web.Response(status=denied.status, headers=error_headers, body=body)
        response = web.StreamResponse(status=part.status, headers=part.headers)
        self._over_tls += 1
        try:
            await response.prepare(request)
            if request.method != "HEAD" and part.length:
                await self._stream(response, file, part)
                self._tls_done += 1
        finally:
            self._over_tls -= 1
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _stream(self, response: web.StreamResponse, file: File, part: ByteRange) -> None:
        each, total = self._settings.each, self._settings.total
        loop = asyncio.get_running_loop()
        with file.path.open("rb") as source:
            source.seek(part.start)
            remaining, began, sent = part.length, loop.time(), 0
            while remaining:
                chunk = await asyncio.to_thread(source.read, min(_CHUNK_BYTES, remaining))
                if not chunk:
                    raise ConnectionError("the file was truncated while it was sent")
                async with asyncio.timeout(self._settings.stall_s):
                    await response.write(chunk)
                remaining -= len(chunk)
                sent += len(chunk)
                self._tls_bytes += len(chunk)
                limits = [*([each] if each else []), *([total / max(1, self._over_tls)] if total else [])]
                if limits:
                    await asyncio.sleep(max(0.0, began + sent / min(limits) - loop.time()))


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES[status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join([*lines, f"Server: {SERVER}", "Connection: close"]) + "\r\n\r\n").encode()

"""Package files to agents, on the agents' ports: `GET /v1/packages/SHA256?expires=…&signature=…`.

Over plain TCP the socket goes to a `Sender` and the kernel copies; over TLS, which the kernel does not speak, the bytes pass
through this process, on the loop that answers agents, in small pieces.
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
_PIECE_BYTES = 128 << 10
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
    """A file is not given; the text is for the agent's log."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class File:
    """A file that may be sent."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Bounds; see `relay.settings.parts.NodePackages`."""

    max_downloads: int
    stall_s: float
    total: int | None
    each: int | None


Find = Callable[[str, dict[str, str]], File]
"""(SHA-256, query) → the file. Raises Denied."""


class Downloads:
    """All downloads of a node. `start`, then `close`.

    Args:
        refused: counts requests that were answered with an error instead of a file, by `download_STATUS`.
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
        """Downloads under way."""
        return self._sender.active + self._over_tls

    @property
    def sent_bytes(self) -> int:
        """Bytes of files sent."""
        return self._sender.sent_bytes + self._tls_bytes

    @property
    def done(self) -> int:
        """Downloads that ended well; parts count too."""
        return self._sender.done + self._tls_done

    @property
    def broken(self) -> int:
        """Downloads that agents broke off, or did not read."""
        return self._sender.broken

    def start(self) -> None:
        """Begin."""
        self._sender.start()

    async def close(self) -> None:
        """End what is under way: agents go on elsewhere, or fail and are offered the file again."""
        await asyncio.to_thread(self._sender.stop)

    def _part(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[File, ByteRange]:
        path, _, query = target.partition("?")
        sha256 = path.removeprefix(PATH)
        if method not in ("GET", "HEAD"):
            raise Denied(405, "GET or HEAD is expected")
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
        """Answer a request on a plain connection, which is this one's from here on and ends with the answer."""
        try:
            file, part = self._part(method, target, headers)
        except (Denied, ValueError) as error:
            denied = error if isinstance(error, Denied) else Denied(404, "no such file")
            more, body = self._refusal(denied)
            transport.write(_head(denied.status, more) + (b"" if method == "HEAD" else body))
            transport.close()
            return
        head = _head(part.status, part.headers)
        if method == "HEAD" or not part.length:
            transport.write(head)
            transport.close()
            return
        # The loop lets go of the connection, and a second descriptor of it goes on.
        try:
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # it is gone, or there are no descriptors left
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
            more, body = self._refusal(denied)
            return web.Response(status=denied.status, headers=more, body=b"" if request.method == "HEAD" else body)
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
            left, began, sent = part.length, loop.time(), 0
            while left:
                piece = await asyncio.to_thread(source.read, min(_PIECE_BYTES, left))
                if not piece:
                    raise ConnectionError("the file is shorter than it was")
                async with asyncio.timeout(self._settings.stall_s):
                    await response.write(piece)
                left -= len(piece)
                sent += len(piece)
                self._tls_bytes += len(piece)
                bounds = [*([each] if each else []), *([total / max(1, self._over_tls)] if total else [])]
                if bounds:
                    await asyncio.sleep(max(0.0, began + sent / min(bounds) - loop.time()))


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES[status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join([*lines, f"Server: {SERVER}", "Connection: close"]) + "\r\n\r\n").encode()

"""The people's end of the admin API. Small imports: a command must start fast."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import json
import sys
from collections.abc import Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from relay import __version__

_TIMEOUT_S = 15.0
VERSION_HEADER = "X-OpAMP-Relay-Version"
_STALE = "X-OpAMP-Relay-Stale"
_TOTAL = "X-Total-Count"
_told: set[str] = set()
"""What was said of answers that may be out of date."""
_answered_by: list[str] = []
"""Versions of the servers that answered; empty of those that do not say theirs yet."""


class Unreachable(Exception):
    """The server could not be reached; the message says which and why."""


class RefusedByServer(Exception):
    """The server said no; `lines` are for people, one a problem."""

    def __init__(self, status: int, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.status = status
        self.lines = lines


class Page(NamedTuple):
    """Some rows of a list."""

    rows: list[Any]
    total: int
    """How many the whole list has."""


def api_of(server: str, actor: str) -> Api:
    """The server, as somebody: who they say, else the user of this machine."""
    who = actor or getpass.getuser().encode("ascii", "replace").decode()
    if not (who.isascii() and who.isprintable()):
        raise RefusedByServer(0, [f"--as {who!r}: expected printable ASCII"])
    return Api(server, who)


def versions_apart() -> str:
    """`: who is too old for what`, where the server that answered is of another version; empty where not."""
    theirs = _answered_by[-1] if _answered_by else __version__
    if not theirs:
        return f": the server is older than this opampctl ({__version__}): upgrade it"
    return "" if theirs == __version__ else f": the server has version {theirs}, this opampctl {__version__}"


class Api:
    """One server.

    Args:
        actor: who asks; empty to say nothing.
    """

    def __init__(self, server: str, actor: str = "") -> None:
        self._actor = {"X-OpAMP-Actor": actor} if actor else {}
        parts = urlsplit(server if "://" in server else f"http://{server}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unreachable(f"{server} is not an http URL")
        self._server = server
        self._total: int | None = None
        """How many rows the list has that was answered last; None where it was none, or nobody said."""
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT_S)
        except ValueError as error:
            raise Unreachable(f"{server}: {error}") from None

    def get(self, *path: str, **query: Any) -> Any:
        """GET /api/v1/PATH; list values repeat, None is left out."""
        value = self._request("GET", path, query=query)
        asked = sorted(key for key, wanted in query.items() if wanted is not None)
        if asked and not _answered_by[-1]:
            # It leaves out what it does not know, and would give everything.
            raise RefusedByServer(0, [f"{', '.join(asked)}{versions_apart()}"])
        return value

    def page(self, *path: str, **query: Any) -> Page:
        """GET a list of which there may be more than is asked for."""
        rows = self.get(*path, **query)
        return Page(rows, self._total if self._total is not None else len(rows))

    def post(self, *path: str, body: Any, within_s: float = _TIMEOUT_S) -> Any:
        """POST JSON.

        Args:
            within_s: how long the answer may take.
        """
        self._connection.timeout = within_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(within_s)
        return self._request("POST", path, body=body)

    def delete(self, *path: str) -> Any:
        """DELETE."""
        return self._request("DELETE", path)

    def patch(self, *path: str, content: bytes, **query: Any) -> Any:
        """PATCH bytes."""
        return self._request("PATCH", path, query=query, content=content)

    @contextlib.contextmanager
    def download(self, *path: str, **query: Any) -> Iterator[IO[bytes]]:
        """GET bytes, to be read in pieces."""
        answer = self._send("GET", path, query)
        if answer.status >= http.client.BAD_REQUEST:
            self._value(answer)
        try:
            yield answer
            answer.read()
        except (http.client.HTTPException, ConnectionResetError, TimeoutError) as error:
            raise Unreachable(f"{self._server}: the answer broke off: {error}") from None

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
    ) -> Any:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        if body is not None:
            content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._value(self._send(method, path, query, content, headers))

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, Any] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        target = "/api/v1/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode({k: v for k, v in query.items() if v is not None}, doseq=True)
        try:
            self._connection.request(method, target, content, {**(headers or {}), **self._actor})
            return self._connection.getresponse()
        except TimeoutError:
            self._connection.close()  # a late answer must not be taken for the next one's
            late = "" if method == "GET" else "; what was asked for may still be done: look before you ask again"
            raise Unreachable(f"{self._server}: no answer within {self._connection.timeout:g} s{late}") from None
        except OSError as error:
            raise Unreachable(f"{self._server}: {error}") from None
        except http.client.HTTPException:
            raise Unreachable(f"{self._server}: the answer is not HTTP; the admin API is on another port") from None

    def _value(self, answer: http.client.HTTPResponse) -> Any:
        try:
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._server}: {error}") from None
        try:
            value = json.loads(data)
        except ValueError:
            raise Unreachable(f"{self._server}: the answer is not JSON (status {answer.status})") from None
        _answered_by.append(answer.headers.get(VERSION_HEADER, ""))
        total = answer.headers.get(_TOTAL, "")
        self._total = int(total) if total.isdecimal() else None
        if (reason := answer.headers.get(_STALE)) and reason not in _told:
            _told.add(reason)
            print(f"warning: what is shown may be out of date: {reason}", file=sys.stderr)
        if answer.status >= http.client.BAD_REQUEST:
            problems = value.get("problems") or [] if isinstance(value, dict) else []
            detail = value.get("detail", "") if isinstance(value, dict) else ""
            lines = [p["text"] for p in problems] or [detail or f"status {answer.status}"]
            raise RefusedByServer(answer.status, [*lines, *filter(None, [versions_apart().removeprefix(": ")])])
        return value

"""Client of the admin API. Imports little: a command must start fast."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import json
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from relay import __version__
from relay.cli.output import EXIT_USAGE
from relay.cli.saved import TokenFileError, token_for

_TIMEOUT_S = 15.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
VERSION_HEADER = "X-OpAMP-Relay-Version"
_STALE = "X-OpAMP-Relay-Stale"
_TOTAL = "X-Total-Count"
_warned: set[str] = set()
"""Reasons for stale responses that the user was warned of already."""
_server_versions: list[str] = []
"""The server version of each response; empty for a server that is too old to report it."""


class Unreachable(Exception):
    """The server cannot be reached; the message says which server and why."""


class RefusedByServer(Exception):
    """The server refused the request; `lines` are for the user, one per problem."""

    def __init__(self, status: int, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.status = status
        self.lines = lines


class Page(NamedTuple):
    """Some rows of a list."""

    rows: list[Any]
    total: int
    """The length of the whole list."""


def api_of(server: str, actor: str) -> Api:
    """The API as used by `actor`, or else by the current user of this machine."""
    api = Api(server)
    if api.is_authenticated:
        if actor:
            print("--as: the token says who you are", file=sys.stderr)
            raise SystemExit(EXIT_USAGE)
        return api
    who = actor or getpass.getuser().encode("ascii", "replace").decode()
    if not (who.isascii() and who.isprintable()):
        raise RefusedByServer(0, [f"--as {who!r}: expected printable ASCII"])
    return Api(server, who)


def revealed(reveal: bool) -> dict[str, str]:
    """The query that asks for secrets, if they are wanted. Servers where nobody authenticates show them anyway."""
    return {"reveal": "true"} if reveal else {}


def version_mismatch() -> str:
    """`: REASON` if the last server to respond has a different version; empty otherwise."""
    theirs = _server_versions[-1] if _server_versions else __version__
    if not theirs:
        return f": the server is older than this opampctl ({__version__}): upgrade it"
    return "" if theirs == __version__ else f": the server has version {theirs}, this opampctl has {__version__}"


def _token_for(origin: str) -> str:
    try:
        return token_for(origin)
    except TokenFileError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None


def _trust(scheme: str) -> dict[str, Any]:
    """How to verify the server: by the CAs of this machine, or by those in the file OPAMPCTL_CA_FILE."""
    if scheme != "https":
        return {}
    import ssl  # plain HTTP does not need it

    name = os.environ.get("OPAMPCTL_CA_FILE") or None
    try:
        return {"context": ssl.create_default_context(cafile=name)}
    except OSError as error:
        raise Unreachable(f"OPAMPCTL_CA_FILE: {name}: {error}") from None


class Api:
    """The admin API of one server.

    Args:
        actor: the user to record; empty to send none.
        authenticates: whether to send a token, if there is one.
    """

    def __init__(self, server: str, actor: str = "", *, authenticates: bool = True) -> None:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unreachable(f"{server} is not an http URL")
        self._server = server
        default_port = 443 if parts.scheme == "https" else 80
        self.origin = f"{parts.scheme}://{parts.hostname}:{parts.port or default_port}"
        token = _token_for(self.origin) if authenticates else ""
        self.is_authenticated = bool(token)
        self.is_private = parts.scheme == "https" or parts.hostname in _LOOPBACK
        """Whether nobody on the way can read what is sent."""
        if token and not self.is_private:
            raise Unreachable(f"{server}: a token is never sent over plain HTTP to another machine; use https")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        if actor:
            self._headers["X-OpAMP-Actor"] = actor
        self._total: int | None = None
        """The total that the last response reported; None if it reported none."""
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT_S, **_trust(parts.scheme))
        except ValueError as error:
            raise Unreachable(f"{server}: {error}") from None

    def get(self, *path: str, **query: Any) -> Any:
        """GET /api/v1/PATH. In the query, lists repeat the key and None is left out."""
        value = self._request("GET", path, query=query)
        parameters = sorted(key for key, setting in query.items() if setting is not None)
        if parameters and not _server_versions[-1]:
            # An old server ignores parameters it does not know, and would return everything.
            raise RefusedByServer(0, [f"{', '.join(parameters)}{version_mismatch()}"])
        return value

    def page(self, *path: str, **query: Any) -> Page:
        """GET part of a list, and the length of the whole list."""
        rows = self.get(*path, **query)
        return Page(rows, self._total if self._total is not None else len(rows))

    def post(self, *path: str, body: Any, within_s: float = _TIMEOUT_S) -> Any:
        """POST JSON.

        Args:
            within_s: how long the response may take.
        """
        self._connection.timeout = within_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(within_s)
        return self._request("POST", path, body=body)

    def delete(self, *path: str) -> Any:
        """DELETE /api/v1/PATH."""
        return self._request("DELETE", path)

    def patch(self, *path: str, content: bytes, **query: Any) -> Any:
        """PATCH bytes."""
        return self._request("PATCH", path, query=query, content=content)

    @contextlib.contextmanager
    def download(self, *path: str, **query: Any) -> Iterator[IO[bytes]]:
        """GET bytes as a stream."""
        response = self._send("GET", path, query)
        if response.status >= http.client.BAD_REQUEST:
            self._value(response)
        try:
            yield response
            response.read()
        except (http.client.HTTPException, ConnectionResetError, TimeoutError) as error:
            raise Unreachable(f"{self._server}: the response broke off: {error}") from None

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
            self._connection.request(method, target, content, {**(headers or {}), **self._headers})
            return self._connection.getresponse()
        except TimeoutError:
            self._connection.close()  # a late response must not be taken for that of the next request
            late = "" if method == "GET" else "; the request may still take effect: check before you repeat it"
            raise Unreachable(f"{self._server}: no response within {self._connection.timeout:g} s{late}") from None
        except OSError as error:
            raise Unreachable(f"{self._server}: {error}") from None
        except http.client.HTTPException:
            raise Unreachable(f"{self._server}: the response is not HTTP; the admin API is on another port") from None

    def _value(self, response: http.client.HTTPResponse) -> Any:
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._server}: {error}") from None
        try:
            value = json.loads(data)
        except ValueError:
            raise Unreachable(f"{self._server}: the response is not JSON (status {response.status})") from None
        _server_versions.append(response.headers.get(VERSION_HEADER, ""))
        total = response.headers.get(_TOTAL, "")
        self._total = int(total) if total.isdecimal() else None
        if (reason := response.headers.get(_STALE)) and reason not in _warned:
            _warned.add(reason)
            print(f"warning: the data may be out of date: {reason}", file=sys.stderr)
        if response.status >= http.client.BAD_REQUEST:
            problems = value.get("problems") or [] if isinstance(value, dict) else []
            detail = value.get("detail", "") if isinstance(value, dict) else ""
            lines = [p["text"] for p in problems] or [detail or f"status {response.status}"]
            if response.status == http.client.UNAUTHORIZED and self.is_authenticated:
                lines = ["the token that was sent is not accepted: it is wrong, has ended, or was deleted"]
            elif response.status == http.client.UNAUTHORIZED:
                lines.append("set OPAMPCTL_TOKEN or OPAMPCTL_TOKEN_FILE, or use `opampctl login`")
            raise RefusedByServer(response.status, [*lines, *filter(None, [version_mismatch().removeprefix(": ")])])
        return value

"""Logs a person in at an OpenID provider, in a browser on this machine or on another device. Speaks to our server alone."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from relay.cli.output import EXIT_REFUSED

if TYPE_CHECKING:
    from http.server import HTTPServer

    from relay.cli.client import Api

_WAIT_S = 300.0
_MOST_S = 600.0
_PAGE = b"<!doctype html><title>opampctl</title><p>The terminal says how it ended; this window can be closed.</p>"


def by_browser(api: Api) -> str:
    """Log in with a browser on this machine. Returns the token of the session."""
    import webbrowser

    with _listener() as listener:
        begun = api.post("auth", "login", body={"redirect_uri": f"http://127.0.0.1:{listener.server_port}/callback"})
        print(f"log in at:\n{begun['url']}", file=sys.stderr, flush=True)
        webbrowser.open(begun["url"])
        query = _wait(listener)
    if "code" not in query:
        said = query.get("error_description") or query.get("error") or "nobody came back in time"
        print(f"not logged in: {''.join(c if c.isprintable() else '?' for c in said[:300])}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED)
    answer = {key: query.get(key, "") for key in ("code", "state", "iss")}
    return str(api.post("auth", "login", body={"login": begun["login"], **answer})["token"])


def by_device(api: Api) -> str:
    """Log in on another device. Returns the token of the session."""
    begun: dict[str, Any] = api.post("auth", "login", body={"device": True})
    print(
        f"on any device, open {begun['verification_uri']} and enter {begun['user_code']}", file=sys.stderr, flush=True
    )
    ends_at, wait_s = time.monotonic() + _MOST_S, float(begun["wait_s"])
    while time.monotonic() < ends_at:
        time.sleep(wait_s)
        answer = api.post("auth", "login", body={"login": begun["login"]})
        if answer.get("token"):
            return str(answer["token"])
        wait_s = max(0.2, float(answer["wait_s"]))
    print("not logged in: nobody entered the code in time", file=sys.stderr)
    raise SystemExit(EXIT_REFUSED)


def _listener() -> HTTPServer:
    """A server on loopback that keeps the query of the first request for /callback."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Callback(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path != "/callback":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(_PAGE)))
            self.end_headers()
            self.wfile.write(_PAGE)
            self.server.query = {key: values[0] for key, values in parse_qs(parts.query).items()}  # type: ignore[attr-defined]

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return HTTPServer(("127.0.0.1", 0), Callback)


def _wait(listener: HTTPServer) -> dict[str, str]:
    ends_at = time.monotonic() + _WAIT_S
    listener.timeout = 1.0
    while time.monotonic() < ends_at and not hasattr(listener, "query"):
        listener.handle_request()
    return getattr(listener, "query", {})

"""A real OpenID provider on Node, and a person at it: follows redirects and fills in forms, as a browser would."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import aiohttp

from tests.tools import need

HERE = Path(__file__).parent
CLIENT_ID = "opamp"
SECRET = "a secret of + and % and : that must be encoded"
_MAX_FORMS = 10


@dataclass(frozen=True)
class OpenIdProvider:
    issuer: str

    async def tell(self, **command: object) -> None:
        """Misbehave from now on (`mode`), or replace the signing keys (`rotate`)."""
        async with aiohttp.ClientSession() as client, client.post(f"{self.issuer}/_test", json=command) as answer:
            assert answer.status == 200


@contextlib.contextmanager
def openid_provider() -> Iterator[OpenIdProvider]:
    need("node", "npm")
    if not (HERE / "node_modules/oidc-provider").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=HERE, check=True, capture_output=True)
    process = subprocess.Popen(
        ["node", "provider.mjs"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process:  # it ends with its standard input
        yield OpenIdProvider(json.loads(process.stdout.readline())["issuer"])


class _Form(HTMLParser):
    """The first form of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "form" and self.action is None:
            self.action = found.get("action", "")
        elif tag == "input" and self.action is not None and "name" in found:
            self.fields[found["name"]] = found.get("value", "")


async def browse(url: str, login: str, *, deny: bool = False, until: str = "") -> str:
    """Open a page in a fresh browser and do what it asks. Returns the address of the last page.

    Args:
        until: the start of an address that is not opened: where the provider sends the browser back to.
    """
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an IP address
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        method, data = "GET", None
        for _ in range(4 * _MAX_FORMS):
            async with browser.request(method, url, data=data, allow_redirects=False) as answer:
                if location := answer.headers.get("Location"):
                    url, method, data = urljoin(url, location), "GET", None
                    if until and url.startswith(until):
                        return url
                    continue
                form = _Form(await answer.text())
            if form.action is None or form.fields.get("user_code") == "":
                return url
            data = dict(form.fields)
            if deny and ("login" in data or "confirm" in data):
                data["abort"] = "yes"
            elif "login" in data:
                data["login"] = login
            url, method = urljoin(url, form.action), "POST"
    raise AssertionError(f"still at a form: {url}")

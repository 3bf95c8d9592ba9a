"""Logins under way at an OpenID provider. Only this control plane speaks to it: no other program has its secret."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import secrets
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import aiohttp

from relay.aio.answers import body_of
from relay.aio.clock import Clock
from relay.auth.openid import (
    DEVICE_GRANT,
    SCOPE,
    Begun,
    NotLoggedIn,
    Person,
    Provider,
    Rules,
    is_loopback_redirect,
    person_of,
    provider_of,
)
from relay.auth.tokens import VerificationKey, key_set
from relay.errors import Conflict, Forbidden, Problem, Refused, UpstreamError
from relay.observe import log
from relay.settings.auth import Oidc

_log = log.get("opamp-relay.admin")
MAX_PENDING = 1_000
MAX_PENDING_OF_ONE = 20
"""From one address."""
_PENDING_S = 600.0
_TIMEOUT_S = 10.0
_MAX_BYTES = 1 << 20
_DISCOVERED_S = 3600.0
_FAILED_S = 3.0
_INTERVAL_S = 5.0
"""Between two questions about a device login, where the provider names no time (RFC 8628, section 3.2)."""
_SAID_CHARS = 200


@dataclass(slots=True)
class _Pending:
    begun: Begun | str
    """The login; the device code of one by device."""
    address: str
    expires_at: float
    interval_s: float = 0.0
    next_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceLogin:
    """What a person needs to log in on another device (RFC 8628, section 3.2)."""

    user_code: str
    uri: str
    complete_uri: str
    interval_s: float


class Waiting(Exception):
    """The person has not logged in yet: ask again after `after_s`."""

    def __init__(self, after_s: float) -> None:
        super().__init__()
        self.after_s = after_s


class Logins:
    """Begins and ends logins."""

    def __init__(self, settings: Oidc, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._secret = _read_secret(settings.client_secret_file)
        self._rules = Rules(settings.issuer, settings.client_id, settings.user_claim, settings.groups_claim)
        self._pending: dict[str, _Pending] = {}
        """Secret of whoever began the login → the login."""
        self._provider: Provider | None = None
        self._keys: tuple[VerificationKey, ...] = ()
        self._discovered_at = 0.0
        self._failure: tuple[float, str] | None = None
        """When and why the provider could not be looked up last."""
        self._tls = ssl.create_default_context()
        self._discovering = asyncio.Lock()

    @property
    def has_device_flow(self) -> bool:
        """Whether people may log in on another device."""
        return self._settings.device_flow

    async def begin(self, redirect_uri: str, address: str) -> tuple[str, str]:
        """Begin a login in a browser.

        Returns:
            (secret for `finish`, URL for the browser).

        Raises:
            Refused: the redirect does not go to the person's own machine.
            Conflict: too many logins are under way.
            UpstreamError: the provider cannot be reached.
        """
        if not is_loopback_redirect(redirect_uri):
            reason = "must be http://127.0.0.1:PORT/callback"
            raise Refused([Problem("request", 0, "redirect_uri", reason)])
        begun = Begun(redirect_uri, *(secrets.token_urlsafe(32) for _ in range(3)))
        with self._place(_Pending(begun, address, self._clock.monotonic() + _PENDING_S)) as login:
            provider = await self._discover()
        return login, begun.url(provider, self._settings.client_id)

    async def finish(self, login: str, code: str, state: str, issuer: str) -> Person:
        """End a login with what the browser was sent back with. It cannot be tried again.

        Raises:
            Forbidden: the login is not known, or proves nothing.
            UpstreamError: the provider cannot be reached.
        """
        pending = self._pending.pop(login, None)
        if pending is None or isinstance(pending.begun, str) or self._clock.monotonic() > pending.expires_at:
            raise Forbidden("no such login is under way; begin again")
        begun, provider = pending.begun, await self._discover()
        try:
            begun.check_redirect(provider, state, issuer)
            answer = await self._token(provider, begun.token_request(code))
            return await self._person(answer, nonce=begun.nonce)
        except NotLoggedIn as error:
            raise self._refusal(error) from None

    async def begin_device(self, address: str) -> tuple[str, DeviceLogin]:
        """Begin a login on another device.

        Raises:
            Forbidden: it is not allowed, or the provider does not have it.
            Conflict: too many logins are under way.
            UpstreamError: the provider cannot be reached.
        """
        if not self.has_device_flow:
            raise Forbidden("admin.auth.oidc.device_flow is off: log in with a browser on this machine")
        pending = _Pending("", address, self._clock.monotonic() + _PENDING_S)
        with self._place(pending) as login:
            return login, await self._begun_device(pending)

    async def _begun_device(self, pending: _Pending) -> DeviceLogin:
        provider = await self._discover()
        if not provider.device_endpoint:
            raise Forbidden("the OpenID provider has no device flow")
        try:
            answer = await self._ask(provider.device_endpoint, {"scope": SCOPE})
        except NotLoggedIn as error:
            raise self._refusal(error) from None
        try:
            made = DeviceLogin(
                str(answer["user_code"]),
                str(answer["verification_uri"]),
                str(answer.get("verification_uri_complete", "")),
                float(answer.get("interval", _INTERVAL_S)),
            )
            code, lasts_s = str(answer["device_code"]), float(answer["expires_in"])
            if not (math.isfinite(lasts_s) and 0 <= made.interval_s <= _PENDING_S):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UpstreamError("the OpenID provider's answer is not that of a device flow") from None
        now = self._clock.monotonic()
        pending.begun, pending.expires_at = code, now + min(lasts_s, _PENDING_S)
        pending.interval_s, pending.next_at = made.interval_s, now + made.interval_s
        return made

    async def poll(self, login: str) -> Person:
        """Ask whether somebody logged in on the other device.

        Raises:
            Waiting: not yet.
            Forbidden: the login is not known, was denied, has expired, or proves nothing.
            UpstreamError: the provider cannot be reached.
        """
        pending, now = self._pending.get(login), self._clock.monotonic()
        if pending is None or not isinstance(pending.begun, str) or now > pending.expires_at:
            self._pending.pop(login, None)
            raise Forbidden("no such login is under way, or its code has expired; begin again")
        if now < pending.next_at:
            raise Waiting(pending.next_at - now)
        pending.next_at = now + pending.interval_s
        request = {"grant_type": DEVICE_GRANT, "device_code": pending.begun}
        try:
            answer = await self._token(await self._discover(), request)
            person = await self._person(answer, nonce=None)
        except _Answered as error:
            if error.code == "slow_down":
                pending.interval_s += _INTERVAL_S
                pending.next_at += _INTERVAL_S
            elif error.code != "authorization_pending":
                self._pending.pop(login, None)
                raise self._refusal(error) from None
            raise Waiting(pending.interval_s) from None
        except NotLoggedIn as error:
            self._pending.pop(login, None)
            raise self._refusal(error) from None
        if self._pending.pop(login, None) is None:  # two asked at once
            raise Forbidden("no such login is under way; begin again")
        return person

    # ---- under way

    @contextlib.contextmanager
    def _place(self, pending: _Pending) -> Iterator[str]:
        """Keep a place for a login from before anybody is asked; it is free again if the block raises.

        Yields:
            The secret of whoever began it.

        Raises:
            Conflict: there is none.
        """
        self._check_room(pending.address)
        login = secrets.token_urlsafe(32)
        self._pending[login] = pending
        try:
            yield login
        except BaseException:
            self._pending.pop(login, None)
            raise

    def _check_room(self, address: str) -> None:
        now = self._clock.monotonic()
        self._pending = {key: pending for key, pending in self._pending.items() if pending.expires_at >= now}
        if len(self._pending) >= MAX_PENDING:
            raise Conflict(f"{MAX_PENDING} logins are under way, the maximum; try again later")
        if sum(pending.address == address for pending in self._pending.values()) >= MAX_PENDING_OF_ONE:
            raise Conflict(f"{MAX_PENDING_OF_ONE} logins from this address are under way, the maximum; try again later")

    def _refusal(self, error: NotLoggedIn) -> Forbidden:
        _log.warning("login_refused", reason=str(error))
        return Forbidden(f"not logged in: {error}")

    # ---- the provider

    async def _discover(self) -> Provider:
        """The provider's configuration and keys; not older than an hour."""
        async with self._discovering:
            now = self._clock.monotonic()
            if self._failure is not None and now - self._failure[0] < _FAILED_S:
                raise UpstreamError(self._failure[1])  # who waited meanwhile need not ask again
            if self._provider is None or now - self._discovered_at > _DISCOVERED_S:
                self._failure = now, "the OpenID provider did not answer"
                try:
                    await self._look_up(now)
                except (UpstreamError, NotLoggedIn) as error:
                    self._failure = self._clock.monotonic(), str(error)
                    raise UpstreamError(str(error)) from None
                self._failure = None
            assert self._provider is not None
            return self._provider

    async def _look_up(self, now: float) -> None:
        issuer = self._settings.issuer
        document = await self._get(f"{issuer.removesuffix('/')}/.well-known/openid-configuration")
        try:
            provider = provider_of(document, issuer)
            self._keys = key_set(await self._get(provider.jwks_uri))
        except ValueError as error:
            raise UpstreamError(f"the OpenID provider {issuer}: {error}") from None
        self._provider, self._discovered_at = provider, now

    async def _person(self, answer: Mapping[str, Any], *, nonce: str | None) -> Person:
        provider = await self._discover()
        token, now = answer.get("id_token"), self._clock.unix_ms() / 1000
        try:
            return person_of(token, self._keys, self._rules, nonce=nonce, now=now)
        except NotLoggedIn:
            try:
                # Its keys may be newer than those we have.
                keys = key_set(await self._get(provider.jwks_uri))
            except ValueError as error:
                raise UpstreamError(f"the OpenID provider's keys: {error}") from None
            if keys == self._keys:
                raise
            self._keys = keys
            return person_of(token, keys, self._rules, nonce=nonce, now=now)

    async def _token(self, provider: Provider, request: Mapping[str, str]) -> Mapping[str, Any]:
        return await self._ask(provider.token_endpoint, request)

    async def _ask(self, url: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        headers, content = {}, dict(form)
        if self._secret:
            # Encoded as RFC 6749 wants it (section 2.3.1), which clients often forget.
            pair = f"{quote_plus(self._settings.client_id)}:{quote_plus(self._secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            content["client_id"] = self._settings.client_id
        answer = await self._call("POST", url, content, headers)
        if not isinstance(answer, dict):
            raise UpstreamError("the OpenID provider's answer is not a JSON object")
        return answer

    async def _get(self, url: str) -> Any:
        return await self._call("GET", url, None, {})

    async def _call(self, method: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Any:
        context: ssl.SSLContext | bool = self._tls if url.startswith("https:") else True
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as client,
                client.request(method, url, data=form, headers=headers, allow_redirects=False, ssl=context) as response,
            ):
                content = await body_of(response, _MAX_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise UpstreamError(f"the OpenID provider cannot be reached: {error or 'no answer in time'}") from None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if response.status == 200 and value is not None:
            return value
        if isinstance(value, dict) and isinstance(value.get("error"), str):
            raise _Answered(value["error"], value.get("error_description"))
        raise UpstreamError(f"the OpenID provider answers {response.status}")


class _Answered(NotLoggedIn):
    """The provider refuses, and says why."""

    def __init__(self, code: str, description: Any) -> None:
        said = f"{code}: {description}" if isinstance(description, str) else code
        super().__init__("".join(c if c.isprintable() else "?" for c in said[:_SAID_CHARS]))
        self.code = code


def _read_secret(name: str) -> str:
    return Path(name).read_text().strip() if name else ""

"""Joins a control plane, and renews the certificate that came of it: HTTPS requests to the join port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509

from relay.aio.answers import body_of
from relay.aio.backoff import Backoff
from relay.aio.clock import Clock
from relay.auth.join_tokens import JoinToken, read_join_token
from relay.auth.key_sets import KeyChain
from relay.auth.signing import Signed
from relay.errors import Problem, RelayError, SettingsError, StoreError, UpstreamError
from relay.node.freshness import MAX_SKEW_S
from relay.node.identity import Identity, IdentityFolder, Trusted, read_identity
from relay.observe import log
from relay.settings.parts import split_endpoint
from relay.settings.programs import NodeSettings

_log = log.get("opamp-relay.identity")
_TIMEOUT_S = 15.0
_MAX_BYTES = 1 << 20
_RENEW_AFTER = 2 / 3
"""Of a certificate's lifetime."""
_SPREAD = 0.1
_RETRY_S, _EXPIRED_RETRY_S = 300.0, 20.0
_LEAST_S = 1.0
_SPREAD_S = 5.0
_LOOK_S = 10.0
_SAID_CHARS = 300


class NotAdmitted(RelayError):
    """The control plane does not admit this node, or is not the one that it was told to trust."""

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal
        """Whether the control plane that we trust said so, and not somebody in its place."""


class NotTrusted(NotAdmitted):
    """Its certificate is not by a CA that this node trusts."""


async def identified(
    settings: NodeSettings, token: str, written: Collection[str]
) -> tuple[NodeSettings, Identity | None]:
    """The settings of a node that knows who it is: region, name and addresses are those of its identity.

    Joins the control plane if there is a token and no identity yet; retries while that is not reachable.

    Args:
        token: a join token; empty for none.
        written: dotted paths of the settings that somebody wrote.

    Raises:
        SettingsError: the settings say another region or name; or the token is none.
        NotAdmitted: the control plane refused.
        StoreError: a file of the identity cannot be read or written.
    """
    address = settings.control_plane
    if address.cert_file:
        identity = read_identity(Path(address.cert_file), Path(address.key_file), _authorities(address.ca_file))
        return _settings_of(settings, identity, address.endpoint, address.join_endpoint or "", written), identity
    folder = IdentityFolder(settings.identity_dir)
    joined = folder.load()
    text = token if token or joined is not None else _read_token(address.join_token_file)
    if joined is None and not text:
        if folder.is_broken:
            raise StoreError(f"{folder.folder}: the certificate is gone: join again with a token made with --replace")
        return settings, None
    read = _read_join_token(text) if text else None
    if read is not None and (joined is None or (token and await _must_join_again(folder, read, address.join_endpoint))):
        if joined is None:
            joined = await _join(settings, folder, read, written)
        else:
            # Aside, with another key: what there is stays until the new one is whole.
            fresh = IdentityFolder(folder.folder.with_name(f"{folder.folder.name}.new"))
            await _join(settings, fresh, read, written)
            joined = folder.take_over(fresh)
    assert joined is not None
    trusted = folder.trusted()
    endpoint = address.endpoint if "control_plane.endpoint" in written else trusted.link
    join = str(address.join_endpoint or trusted.join)
    return _settings_of(settings, joined, endpoint, join, written), joined


def _authorities(name: str) -> bytes:
    try:
        content = Path(name).read_bytes()
        if not x509.load_pem_x509_certificates(content):
            raise ValueError("it has no certificate")
    except OSError as error:
        raise StoreError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{name}: cannot be used: {error}") from None
    return content


def _read_join_token(text: str) -> JoinToken:
    try:
        token = read_join_token(text)
        for endpoint in (token.join, token.link):
            split_endpoint(endpoint)
    except ValueError as error:
        raise SettingsError([Problem("settings", 0, "control_plane.join_token_file", str(error))]) from None
    return token


async def _must_join_again(folder: IdentityFolder, token: JoinToken, join_endpoint: str | None) -> bool:
    """Whether a node that has an identity needs another one: its own is refused, or the token is another control plane's."""
    await _catch_up(folder, join_endpoint)
    return not folder.trusted().chain.names_root(token.root) or await _is_refused(folder, join_endpoint)


async def _catch_up(folder: IdentityFolder, join_endpoint: str | None) -> None:
    """Take key sets that this node missed, if the join port can be reached."""
    trusted = folder.trusted()
    try:
        told = await _call(join_endpoint or trusted.join, "GET", "/v1/trust", None, None)
        chain = trusted.chain.extended(_signed(told))
    except (UpstreamError, NotAdmitted, ValueError):  # or it is another control plane
        return
    if chain is not trusted.chain:
        folder.trust(chain)


async def _is_refused(folder: IdentityFolder, join_endpoint: str | None) -> bool:
    """Whether the control plane does not renew the identity. One that cannot be reached does not say so."""
    try:
        trusted = folder.trusted()
        await _ask_renewal(join_endpoint or trusted.join, folder, trusted)
    except NotAdmitted as error:
        if error.is_refusal:
            _log.warning("identity_refused", error=str(error))
        return error.is_refusal
    except UpstreamError:
        return False
    return False


def _settings_of(
    settings: NodeSettings, identity: Identity, endpoint: str, join: str, written: Collection[str]
) -> NodeSettings:
    node = identity.node
    contradictions = [
        Problem("settings", 0, f"node.{name}", f"{value} contradicts the certificate of this node, which is for {of}")
        for name, value, of in (("region", settings.node.region, node.region), ("name", settings.node.name, node.name))
        if f"node.{name}" in written and value != of
    ]
    if contradictions:
        raise SettingsError(contradictions)
    address = settings.control_plane.model_copy(update={"endpoint": endpoint, "join_endpoint": join or None})
    named = settings.node.model_copy(update={"region": node.region, "name": node.name})
    return settings.model_copy(update={"node": named, "control_plane": address})


def _read_token(name: str) -> str:
    if not name:
        return ""
    try:
        return Path(name).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise SettingsError([Problem("settings", 0, "control_plane.join_token_file", f"{name}: {reason}")]) from None


async def _join(settings: NodeSettings, folder: IdentityFolder, token: JoinToken, written: Collection[str]) -> Identity:
    endpoint = settings.control_plane.join_endpoint or token.join
    name = settings.node.name if "node.name" in written else _host_name()
    request = {"id": token.id, "secret": token.secret, "csr": folder.request(), "name": name}
    backoff = Backoff(first_s=0.5, most_s=30.0, chance=random.random)
    while True:
        try:
            told = await _call(endpoint, "GET", "/v1/trust", None, None)
            chain = _accepted(_signed(told), token.root)
            _check_clock(told)
            answer = await _call(endpoint, "POST", "/v1/join", request, chain.current.bundle)
            break
        except UpstreamError as error:
            _log.warning("join_waits", control_plane=endpoint, error=str(error))
            await asyncio.sleep(backoff.next_delay_s())
    identity = _stored(folder, answer, Trusted(chain, token.root, token.join, token.link))
    _log.info("node_joined", region=identity.node.region, node=identity.node.name, control_plane=endpoint)
    return identity


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")
    return name[:63] or "node"


def _signed(answer: Any) -> list[Signed]:
    try:
        return [Signed.from_plain(item) for item in answer["key_sets"]]
    except (KeyError, TypeError, ValueError):
        raise NotAdmitted("the answer of the join port is not one of an OpAMP relay's control plane") from None


def _check_clock(told: Any) -> None:
    """Refuse to join if our clock is wrong: certificates and policy are dated."""
    now_ms = told.get("unix_ms") if isinstance(told, dict) else None
    if not isinstance(now_ms, int) or not 0 <= now_ms < 1 << 48:
        return
    difference_s = time.time() - now_ms / 1000
    if abs(difference_s) > MAX_SKEW_S:
        word = "ahead of" if difference_s > 0 else "behind"
        raise NotAdmitted(f"the clock of this node is {abs(difference_s):.0f} s {word} the control plane's; set it")


def _accepted(signed: list[Signed], root: str) -> KeyChain:
    try:
        return KeyChain.of(signed, root)
    except ValueError as error:
        raise NotAdmitted(f"this is not the control plane that made the join token: {error}") from None


def _stored(folder: IdentityFolder, answer: Any, trusted: Trusted) -> Identity:
    try:
        certificate = answer["certificate"].encode()
        chain = trusted.chain.extended(_signed(answer))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotAdmitted(f"the answer of the join port cannot be used: {error}") from None
    return folder.store(certificate, Trusted(chain, trusted.root, trusted.join, trusted.link))


async def _ask_renewal(endpoint: str, folder: IdentityFolder, trusted: Trusted) -> Any:
    return await _call(endpoint, "POST", "/v1/renew", {"csr": folder.request()}, trusted.chain.current.bundle)


async def _call(endpoint: str, method: str, path: str, content: Any, authorities: str | None) -> Any:
    """Call the join port.

    Args:
        authorities: PEM of the CAs to verify it by; None to verify nothing, for what proves itself.

    Raises:
        UpstreamError: it cannot be reached, or is not ready.
        NotAdmitted: it refused, or is not the one to trust.
    """
    host, port = split_endpoint(endpoint)
    context: ssl.SSLContext | bool = False
    if authorities is not None:
        context = ssl.create_default_context(cadata=authorities)
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}{path}"
    try:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.request(method, url, json=content, ssl=context, allow_redirects=False) as response,
        ):
            try:
                body = await body_of(response, _MAX_BYTES)
            except ValueError as error:
                raise NotAdmitted(f"{endpoint}: the answer is {error}") from None
            value = _json(body)
            if response.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
                raise UpstreamError(f"{endpoint} answers {response.status}")
            if response.status != HTTPStatus.OK:
                detail = str(value.get("detail", "")) if isinstance(value, dict) else ""
                said = "".join(c if c.isprintable() else "?" for c in detail[:_SAID_CHARS])
                is_refusal = authorities is not None and response.status == HTTPStatus.FORBIDDEN
                raise NotAdmitted(f"{endpoint}: {said or f'status {response.status}'}", is_refusal=is_refusal)
            return value
    except aiohttp.ClientConnectorCertificateError as error:
        raise NotTrusted(f"{endpoint} is not the control plane to trust: {error.certificate_error}") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UpstreamError(f"{endpoint}: {error or 'no answer in time'}") from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


class Renewal:
    """Keeps a node's identity: renews its certificate in time, and takes newer key sets.

    A node that was cut off for long comes back by itself: it asks the join port for key sets that it missed, too.

    Args:
        renewed: called with each new identity.
    """

    def __init__(
        self,
        folder: IdentityFolder,
        identity: Identity,
        endpoint: str,
        *,
        clock: Clock,
        renewed: Callable[[Identity], None],
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._endpoint = endpoint
        self._clock = clock
        self._renewed = renewed
        self._changed = asyncio.Event()
        """Set when there may be a reason to renew before time."""
        self.problem = ""
        """Why the certificate could not be renewed; empty while all is well."""

    def due_in_s(self) -> float:
        """Seconds until the next renewal: after two thirds of the lifetime, a tenth earlier or later."""
        lifetime_s = self._identity.node.not_after - self._identity.not_before
        share = _RENEW_AFTER + _SPREAD * (2 * random.random() - 1)  # noqa: S311
        return max(0.0, self._identity.not_before + share * lifetime_s - self._clock.unix_ms() / 1000)

    async def run(self) -> None:
        """Renew again and again, until cancelled."""
        while True:
            self._changed.clear()
            if self._identity.is_by_newest:
                if await self._changes_within(max(_LEAST_S, self.due_in_s())):
                    continue
            else:
                await asyncio.sleep(random.uniform(0, _SPREAD_S))  # noqa: S311 - all nodes hear of a new CA at once
            renewed = await self.renew()
            if renewed and not self._identity.is_by_newest:
                # The control plane issues by an older CA than this node trusts: its database may be an old one.
                await self._changes_within(_RETRY_S)
            while not renewed and not await self.renew():
                remaining_s = self._identity.node.not_after - self._clock.unix_ms() / 1000
                least_s = 1.0 if remaining_s > 0 else _EXPIRED_RETRY_S  # the join port counts refusals
                await self._changes_within(max(least_s, min(_RETRY_S, remaining_s / 10)))

    async def _changes_within(self, seconds: float) -> bool:
        """Wait for newer key sets. Returns whether some came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        return self._changed.is_set()

    async def follow(self, is_cut_off: Callable[[], bool]) -> None:
        """While the control plane cannot be reached, look for key sets that would explain it, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if is_cut_off():
                await self.look()

    def trust(self, chain: KeyChain) -> None:
        """Take newer key sets, which came with policy."""
        try:
            self._take(chain.signed)
        except (StoreError, ValueError) as error:
            _log.error("keyset_failed", error=str(error))

    def _take(self, signed: Iterable[Signed]) -> None:
        trusted = self._folder.trusted()
        chain = trusted.chain.extended(signed)
        if chain is not trusted.chain:
            self._use(self._folder.trust(chain))
            _log.info("keyset_changed", version=chain.current.version)

    async def look(self) -> None:
        """Ask the join port for key sets that came meanwhile. They prove themselves, so the port need not."""
        try:
            self._take(_signed(await _call(self._endpoint, "GET", "/v1/trust", None, None)))
        except (UpstreamError, NotAdmitted, StoreError, ValueError) as error:
            _log.debug("keyset_not_found", error=str(error))
        except Exception:  # anybody may answer there: this node must go on looking
            _log.exception("keyset_failed")

    def _use(self, identity: Identity) -> None:
        self._identity = identity
        self._changed.set()
        self._renewed(identity)

    async def renew(self) -> bool:
        """Renew once. Returns whether that worked; `problem` says why not."""
        try:
            trusted = self._folder.trusted()
            answer = await _ask_renewal(self._endpoint, self._folder, trusted)
            identity = _stored(self._folder, answer, trusted)
        except NotTrusted as error:
            self.problem = str(error)
            await self.look()  # its CA may be a newer one
            return False
        except (UpstreamError, NotAdmitted, StoreError) as error:
            if str(error) != self.problem:
                _log.error("certificate_not_renewed", error=str(error))
            self.problem = str(error)
            return False
        except Exception as error:  # whatever it is: this node must go on renewing
            _log.exception("certificate_not_renewed")
            self.problem = repr(error)
            return False
        self.problem = ""
        _log.info("certificate_renewed", not_after=identity.node.not_after)
        self._use(identity)
        return True

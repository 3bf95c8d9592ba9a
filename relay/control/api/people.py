"""Who calls the admin API: people, by their tokens. Callers are told nothing about why a token is refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from relay.aio.clock import Clock
from relay.auth.addresses import AddressRules
from relay.auth.failures import Failures
from relay.auth.secrets import SESSION_FORM, TOKEN_FORM, id_of, person_digest
from relay.auth.throttle import Throttle
from relay.control.access.actor import Actor
from relay.control.access.roles import Grants
from relay.control.access.sessions import Session
from relay.control.access.tokens import Token
from relay.control.ledger.change import Entry
from relay.control.ledger.ledger import Ledger
from relay.errors import StoreError
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics

_log = log.get("opamp-relay.admin")
_LATE_S = 1.0
_MAX_LATE = 1_000
_REQUESTS_PER_S = 50
_MAX_COUNTED = 2_000
"""Credentials whose requests are counted before old ones are forgotten."""


@dataclass(slots=True)
class _Second:
    began: float
    requests: int = 0


class People:
    """Finds out who makes a request.

    Args:
        kind: how they authenticate: `none` (everybody may do everything), `token`, or `oidc` (tokens and sessions).
        issuer: of people who log in: sessions of another one are over.
        addresses: from where people may call.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        kind: str,
        issuer: str = "",
        addresses: AddressRules,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._ledger = ledger
        self.kind = kind
        self._issuer = issuer
        self._addresses = addresses
        self._clock = clock
        self._metrics = metrics
        self._failures = Failures()
        self._late = 0
        self._seconds: dict[str, _Second] = {}
        """Credential → its requests in the current second."""
        self._denied = Throttle()
        """By credential."""

    @property
    def required(self) -> bool:
        """Whether people need a credential."""
        return self.kind != "none"

    def admits(self, ip: str) -> bool:
        """Whether an address may call at all."""
        return self._addresses.admits(ip)

    async def find(self, authorizations: list[str], ip: str) -> Actor | None:
        """Who makes a request; None if its credential is not one. From an address that fails often, None comes late."""
        actor = self._actor(authorizations, ip)
        if actor is not None:
            return actor
        self._metrics.denied["credential" if authorizations else "no_credential"] += 1
        if self._failures.add(ip, self._clock.monotonic()) and self._late < _MAX_LATE:
            self._late += 1
            try:
                await asyncio.sleep(_LATE_S)
            finally:
                self._late -= 1
        return None

    def _actor(self, authorizations: list[str], ip: str) -> Actor | None:
        found = person_digest(authorizations[0], TOKEN_FORM, SESSION_FORM) if len(authorizations) == 1 else None
        if found is None:
            return None
        form, digest = found
        state = self._ledger.state
        kept = self._kept(id_of(digest, "session" if form is SESSION_FORM else "token"))
        if kept is None or kept.digest != digest:
            return None
        if isinstance(kept, Token):
            grants, name, owner = Grants((kept.grant,)), kept.owner, ""
        else:
            grants, name, owner = kept.grants(state.catalog.role_bindings.values()), kept.user, kept.owner
        return Actor(name, verified=True, credential=kept.id, address=ip, grants=grants, owner=owner)

    def _kept(self, credential: str) -> Token | Session | None:
        """The token or session with an id, unless it is over."""
        state = self._ledger.state
        kept: Token | Session | None = state.tokens.get(credential)
        if kept is None and self.kind == "oidc":
            session = state.sessions.get(credential)
            kept = session if session is not None and session.owner.startswith(f"{self._issuer}|") else None
        return kept if kept is not None and self._clock.unix_ms() < kept.expires_ms else None

    def is_current(self, actor: Actor) -> bool:
        """Whether the credential of a request is still good: an answer may take minutes."""
        return self._kept(actor.credential) is not None

    def is_too_fast(self, actor: Actor) -> bool:
        """Count a request. Whether its credential made too many in this second."""
        now = self._clock.monotonic()
        second = self._seconds.get(actor.credential)
        if second is None or now - second.began >= 1:
            if len(self._seconds) > _MAX_COUNTED:  # tokens come and go
                self._seconds = {key: kept for key, kept in self._seconds.items() if now - kept.began < 1}
                self._denied.forget_old(now)
            second = self._seconds[actor.credential] = _Second(now)
        second.requests += 1
        return second.requests > _REQUESTS_PER_S

    async def deny(self, actor: Actor, what: str, reason: str) -> None:
        """Record that somebody tried what they may not: in the audit at most once a second, with a count."""
        self._metrics.denied["role"] += 1
        suppressed = self._denied.passing(actor.credential, self._clock.monotonic())
        if suppressed is None:
            return
        more = f" (and {suppressed} more)" if suppressed else ""
        _log.warning("request_denied", actor=actor.name, credential=actor.credential, what=what, reason=reason)
        try:
            await self._ledger.record(actor, [Entry("denied", what, reason=f"{reason}{more}")])
        except StoreError as error:
            _log.error("denial_not_audited", error=str(error))

"""Authentication of agents, the same on every transport: asks `relay.auth.chain`, remembers, counts, logs.

Callers get no detail. Reasons go to the log and the metrics.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from relay.aio.clock import Clock
from relay.auth.chain import Chain
from relay.auth.failures import Failures
from relay.auth.principal import Principal, Reason
from relay.auth.throttle import Throttle
from relay.auth.tokens import MAX_TOKEN_BYTES
from relay.ids import sha256
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.transport.head import Refusal, full

_log = log.get("opamp-relay.auth")
CHALLENGE = ("WWW-Authenticate", "Bearer")
LATE_S = 1.0
"""How much later an address that fails often gets its refusals."""
_MAX_LATE = 1_000
"""Refusals that wait; beyond it they are sent at once."""
_MAX_REMEMBERED = 10_000
"""Verified Authorization headers."""
_MAX_LISTED = 100


@dataclass(frozen=True, slots=True)
class Rejection:
    """A refused caller, for people."""

    at_unix_ms: int
    remote: str
    reason: Reason


class Authenticator:
    """Finds out who sends a request or opens a connection.

    Args:
        chain: None while agents need no credentials.
        has_policy: whether keys and revocations have ever arrived.
        retry_after_s: when callers should try again who came before that.
        unknown_key: called when a credential is of a key that nobody knows.
    """

    def __init__(
        self,
        chain: Chain | None,
        *,
        clock: Clock,
        metrics: NodeMetrics,
        has_policy: Callable[[], bool] = lambda: True,
        retry_after_s: float = 30.0,
        unknown_key: Callable[[], None] = lambda: None,
    ) -> None:
        self._unknown_key = unknown_key
        self._has_policy = has_policy
        self._retry_after_s = retry_after_s
        self._chain = chain
        self._clock = clock
        self._metrics = metrics
        self._remembered: OrderedDict[bytes, Principal] = OrderedDict()
        """SHA-256 of an Authorization header → whose it is. HTTP agents send theirs with every poll."""
        self._failures = Failures()
        self._late = 0
        self._logged = Throttle()
        """Reason → (when it was logged last, how often it was not logged since)."""
        self.rejections: deque[Rejection] = deque(maxlen=_MAX_LISTED)
        """The last ones, the newest last."""

    @property
    def is_required(self) -> bool:
        """Whether agents need credentials."""
        return self._chain is not None

    def use(self, chain: Chain) -> None:
        """Go by other keys, revocations or addresses from now on."""
        self._chain = chain
        self._remembered.clear()

    def admits(self, ip: str) -> bool:
        """Whether an address may connect at all; for a look before TLS."""
        return self._chain is None or self._chain.admits(ip)

    def authenticate(
        self, authorization: str | None, certificate: bytes | None, ip: str, remote: str
    ) -> Principal | Reason | None:
        """Find out who sends a request; None where agents need no credentials.

        Args:
            authorization: value of the header; None if there was none.
            certificate: the client's, DER, whose chain TLS has verified; None if it sent none.
            ip: where it comes from, behind trusted proxies.
            remote: the same for people, with the port.
        """
        if self._chain is None:
            return None
        found = self._find(self._chain, authorization, certificate, ip)
        if isinstance(found, Principal):
            self._metrics.authentications[found.method.value, "ok"] += 1
            return found
        kind = "header" if authorization is not None else "certificate" if certificate is not None else "none"
        self._metrics.authentications[kind, found.value] += 1
        if found is Reason.UNKNOWN_KEY:
            self._unknown_key()
        self.rejections.append(Rejection(self._clock.unix_ms(), remote, found))
        self._log(found, remote)
        return found

    def _find(self, chain: Chain, authorization: str | None, certificate: bytes | None, ip: str) -> Principal | Reason:
        if not self._has_policy():
            return Reason.NO_POLICY if chain.admits(ip) else Reason.ADDRESS
        now = self._clock.unix_ms() / 1000
        if authorization is None or certificate is not None or len(authorization) > MAX_TOKEN_BYTES:
            # A certificate is part of the decision, and may be all of it: only a header alone is remembered.
            return chain.authenticate(authorization, certificate, ip, now)
        key = sha256(authorization.encode("utf-8", "surrogateescape"))
        known = self._remembered.get(key)
        if known is not None and not known.has_ended(now) and chain.admits(ip):
            self._remembered.move_to_end(key)
            return known
        found = chain.authenticate(authorization, certificate, ip, now)
        if isinstance(found, Principal):
            self._remembered[key] = found
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def has_ended(self, principal: Principal | None) -> bool:
        """Whether the credential of an open session has come to its end."""
        return principal is not None and principal.has_ended(self._clock.unix_ms() / 1000)

    def reconsidered(self, principal: Principal | None) -> Principal | None:
        """Who an open session is by what is known now; None if its credential was taken away."""
        if principal is None or self._chain is None:
            return principal
        return self._chain.reconsidered(principal)

    # ---- refusals

    def refusal(self, reason: Reason, ip: str) -> Refusal:
        """The answer to a refused caller. If it has a delay, `delayed` must be called at the end of it."""
        if reason is Reason.ADDRESS:
            return Refusal(403, "address")
        if reason is Reason.NO_POLICY:
            return full(reason.value, self._retry_after_s)
        return Refusal(401, "unauthenticated", (CHALLENGE,), self._delay(ip))

    def _delay(self, ip: str) -> float:
        if not self._failures.add(ip, self._clock.monotonic()) or self._late >= _MAX_LATE:
            return 0.0
        self._late += 1
        return LATE_S

    async def wait(self, refusal: Refusal) -> None:
        """Wait until a refusal is due."""
        if refusal.delay_s:
            try:
                await asyncio.sleep(refusal.delay_s)
            finally:
                self.delayed()

    def delayed(self) -> None:
        """A late refusal is due."""
        self._late -= 1

    def _log(self, reason: Reason, remote: str) -> None:
        suppressed = self._logged.passing(reason.value, self._clock.monotonic())
        if suppressed is not None:
            _log.warning("agent_refused", reason=reason.value, remote_addr=remote, suppressed=suppressed)

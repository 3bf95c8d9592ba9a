"""Nodes and the tokens by which they join. What a certificate request asks for does not count, only its key."""

from __future__ import annotations

import dataclasses
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from relay.aio.clock import Clock
from relay.auth.identities import NodeCertificate
from relay.auth.join_tokens import JoinToken
from relay.auth.key_sets import KeyChain
from relay.auth.throttle import Throttle
from relay.control.access.actor import Actor
from relay.control.access.nodes import JoinedNode, JoinGrant
from relay.control.keys.trust import Trust
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.trust.certificates import new_serial, public_key_of
from relay.errors import Conflict, Forbidden, NotFound, Problem, Refused
from relay.ids import sha256

MAX_GRANTS = 1_000
_SECRET_BYTES = 32
_ID_BYTES = 5
_REFUSED = "this join token is not accepted: it is unknown, used up or expired"


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """The join token to make."""

    region: str
    name: str = ""
    """The name that the node must have; empty for any."""
    uses: int = 1
    lifetime_s: float = 3600.0
    replaces: bool = False
    """Whether a node may take the name of one that joined before."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long certificates of nodes are valid, and how long after their end they can be renewed; seconds."""

    certificate_s: float
    renew_expired_s: float


class JoinRegistry:
    """All nodes that joined, and all join tokens.

    Args:
        addresses: returns HOST:PORT of the join port and of the link, as they go into tokens.
        is_own: whether nodes' certificates are ours. Nodes with somebody else's do not join, but can be revoked by name.
    """

    def __init__(
        self,
        ledger: Ledger,
        trust: Trust,
        lifetimes: Lifetimes,
        addresses: Callable[[], tuple[str, str]],
        *,
        clock: Clock,
        is_own: bool = True,
    ) -> None:
        self._ledger = ledger
        self._trust = trust
        self._lifetimes = lifetimes
        self._addresses = addresses
        self._clock = clock
        self.is_own = is_own
        self._refusals = Throttle()

    # ---- tokens

    async def grant(self, request: GrantRequest, *, actor: Actor) -> tuple[JoinGrant, str]:
        """Make a join token.

        Returns:
            (what is kept of it, the token).

        Raises:
            Conflict: there are too many.
        """
        secret, grant_id = os.urandom(_SECRET_BYTES).hex(), f"join-{os.urandom(_ID_BYTES).hex()}"
        join, link = self._addresses()
        grant = await self._ledger.change(
            actor, lambda state, now_ms: _grant(state, request, grant_id, sha256(secret.encode()).hex(), actor, now_ms)
        )
        return grant, JoinToken(grant_id, secret, self._trust.root, join, link).text()

    async def withdraw(self, grant_id: str, *, actor: Actor) -> None:
        """Delete a join token. Nodes that joined by it stay.

        Raises:
            NotFound: there is no such token.
        """
        await self._ledger.change(actor, lambda state, _: _withdraw(state, grant_id))

    # ---- nodes

    async def join(self, grant_id: str, secret: str, csr: str, name: str, *, address: str) -> bytes:
        """Admit a node. Repeating a request that succeeded gives another certificate for the same key.

        Args:
            csr: its certificate request, PEM.
            name: the name that it asks for, if the token says none.
            address: where it calls from, for the audit.

        Returns:
            Its certificate, PEM.

        Raises:
            Refused: the request is malformed.
            Forbidden: the token is not accepted.
            Conflict: the name belongs to another node.
        """
        try:
            public, digest = public_key_of(csr)
        except ValueError as error:
            raise Refused([Problem("request", 0, "csr", str(error))]) from None
        actor, serial = Actor(f"join token {grant_id[:64]}", address=address), new_serial()
        try:
            node = await self._ledger.change(
                actor, lambda state, now_ms: self._join(state, grant_id, secret, digest, name, serial, now_ms)
            )
        except (Forbidden, Conflict) as error:
            await self._audit_refusal(actor, grant_id, str(error))
            raise
        return self._issue(node, public)

    async def _audit_refusal(self, actor: Actor, grant_id: str, reason: str) -> None:
        """Record that a node was refused: at most once a second, with a count of the others."""
        more = self._refusals.passing("join", self._clock.monotonic())
        if more is None:
            return
        text = f"{reason} (and {more} more)" if more else reason
        await self._ledger.record(actor, [Entry("join_refused", f"JoinToken/{grant_id[:64]}", reason=text)])

    def _issue(self, node: JoinedNode, public: ec.EllipticCurvePublicKey) -> bytes:
        now, lifetime_s = self._clock.unix_ms() / 1000, self._lifetimes.certificate_s
        return self._trust.issuer.node(node.region, node.name, public, now, lifetime_s, serial=int(node.serial, 16))

    def _join(
        self, state: State, grant_id: str, secret: str, digest: str, name: str, serial: int, now_ms: int
    ) -> Change[JoinedNode]:
        grant = state.join_grants.get(grant_id)
        if grant is None or not hmac.compare_digest(sha256(secret.encode()).hex(), grant.digest):
            raise Forbidden(_REFUSED)
        name = grant.name or name
        node_id = f"{grant.region}/{name}"
        known, nodes = state.joined_nodes.get(node_id), state.joined_nodes.values()
        if any(digest in n.revoked_keys or (n.revoked and n.key_digest == digest) for n in nodes):
            raise Forbidden("this key was revoked")
        if any(n.key_digest == digest and n.id != node_id for n in nodes):
            raise Forbidden("this key is another node's: remove the identity folder of one of them, and join again")
        if (name, digest) in grant.joined and known is not None and known.key_digest == digest:
            return self._extended(state, known, serial, now_ms)  # the answer was lost
        if now_ms >= grant.expires_ms or len(grant.joined) >= grant.uses:
            raise Forbidden(_REFUSED)
        is_over = known is not None and (known.revoked or now_ms > self._may_renew_until(known))
        if known is not None and known.key_digest != digest and not grant.replaces and not is_over:
            raise Conflict(
                f"{known.id} has joined before, with another key. If it lost its data folder, make a token with --replace"
            )
        revoked = (*known.revoked_keys, known.key_digest) if known is not None and known.revoked else ()
        not_after_ms = now_ms + round(self._lifetimes.certificate_s * 1000)
        node = JoinedNode(
            grant.region,
            name,
            digest,
            not_after_ms,
            now_ms,
            grant.id,
            revoked_keys=revoked,
            serial=f"{serial:x}",
            ca=_issuer_of(state),
        )
        used = dataclasses.replace(grant, joined=(*grant.joined, (name, digest)))
        after = dataclasses.replace(
            state,
            joined_nodes={**state.joined_nodes, node.id: node},
            join_grants={**state.join_grants, grant.id: used},
        )
        return Change(after, node, entries=[Entry("join", f"Node/{node.id}", reason=f"by {grant.id}")])

    def _extended(self, state: State, node: JoinedNode, serial: int, now_ms: int) -> Change[JoinedNode]:
        not_after_ms = now_ms + round(self._lifetimes.certificate_s * 1000)
        extended = dataclasses.replace(node, not_after_ms=not_after_ms, serial=f"{serial:x}", ca=_issuer_of(state))
        nodes = {**state.joined_nodes, node.id: extended}
        entry = Entry("certificate", f"Node/{node.id}")
        return Change(dataclasses.replace(state, joined_nodes=nodes), extended, entries=[entry])

    async def renew(self, csr: str, *, address: str) -> bytes:
        """Give a node that joined another certificate. It proves with its request that it has the key.

        Raises:
            Refused: the request is malformed.
            Forbidden: no node has this key, or its certificate ended too long ago.
        """
        try:
            public, digest = public_key_of(csr)
        except ValueError as error:
            raise Refused([Problem("request", 0, "csr", str(error))]) from None
        serial = new_serial()
        node = await self._ledger.change(
            Actor("node", address=address), lambda state, now_ms: self._renew(state, digest, serial, now_ms)
        )
        return self._issue(node, public)

    def _renew(self, state: State, digest: str, serial: int, now_ms: int) -> Change[JoinedNode]:
        node = next((n for n in state.joined_nodes.values() if n.key_digest == digest and not n.revoked), None)
        if node is None or now_ms > self._may_renew_until(node):
            raise Forbidden("this key is not that of a node that may renew: join again, with a new token")
        return self._extended(state, node, serial, now_ms)

    def refusal(self, certificate: NodeCertificate) -> str:
        """Why the holder of a valid certificate of a node is not admitted; empty if it is."""
        node = self._ledger.state.joined_nodes.get(certificate.key)
        if not self.is_own:
            return f"node {certificate.key} is revoked" if node is not None and node.revoked else ""
        if certificate.trust_domain != self._trust.current.trust_domain:
            return f"the certificate is of trust domain {certificate.trust_domain}"
        if node is None:
            return f"no node {certificate.key} has joined"
        if node.revoked:
            return f"node {certificate.key} is revoked: {node.revoked}"
        if node.key_digest != certificate.key_digest:
            return f"node {certificate.key} was replaced: its certificate is for another key"
        return ""

    def still_with_former_ca(self) -> list[str]:
        """Nodes, as REGION/NAME, whose certificate a former CA issued and which may still renew it."""
        state, now_ms = self._ledger.state, self._clock.unix_ms()
        newest = _issuer_of(state)
        return [
            node.id
            for node in state.joined_nodes.values()
            if not node.revoked and node.ca != newest and now_ms <= self._may_renew_until(node)
        ]

    def _may_renew_until(self, node: JoinedNode) -> float:
        return node.not_after_ms + self._lifetimes.renew_expired_s * 1000

    async def revoke(self, node_id: str, reason: str, *, actor: Actor) -> None:
        """Take a node's identity away. Its streams end, and it must join again.

        Its region gets another download key: what the node knew signs no more addresses.

        Raises:
            NotFound: no such node has joined.
        """
        await self._ledger.change(actor, lambda state, now_ms: _revoke(state, node_id, reason, now_ms, self.is_own))


def _grant(
    state: State, request: GrantRequest, grant_id: str, digest: str, by: Actor, now_ms: int
) -> Change[JoinGrant]:
    kept = {key: grant for key, grant in state.join_grants.items() if grant.expires_ms > now_ms}
    if len(kept) >= MAX_GRANTS:
        raise Conflict(f"there are {MAX_GRANTS} join tokens, the maximum; delete some")
    grant = JoinGrant(
        grant_id,
        digest,
        request.region,
        request.name,
        request.uses,
        request.replaces,
        now_ms,
        by.name,
        now_ms + round(request.lifetime_s * 1000),
    )
    entry = Entry("create", f"JoinToken/{grant_id}", reason=f"region {grant.region}, {grant.uses} uses")
    return Change(dataclasses.replace(state, join_grants={**kept, grant_id: grant}), grant, entries=[entry])


def _withdraw(state: State, grant_id: str) -> Change[None]:
    if grant_id not in state.join_grants:
        raise NotFound(f"there is no join token {grant_id}")
    rest = {key: grant for key, grant in state.join_grants.items() if key != grant_id}
    entry = Entry("delete", f"JoinToken/{grant_id}")
    return Change(dataclasses.replace(state, join_grants=rest), None, entries=[entry])


def _revoke(state: State, node_id: str, reason: str, now_ms: int, is_own: bool) -> Change[None]:
    node = state.joined_nodes.get(node_id)
    if node is None and is_own:
        raise NotFound(f"no node {node_id} has joined")
    region, _, name = node_id.partition("/")
    revoked = dataclasses.replace(node or JoinedNode(region, name, "", 0, now_ms, ""), revoked=reason)
    nodes = {**state.joined_nodes, node_id: revoked}
    entry = Entry("revoke", f"Node/{node_id}", reason=reason)
    keys = state.keys.with_generation(region)
    return Change(dataclasses.replace(state, joined_nodes=nodes, keys=keys), None, entries=[entry])


def _issuer_of(state: State) -> str:
    """SHA-256 of the CA that issues."""
    return sha256(KeyChain.of(state.keys.key_sets).current.authorities[0].encode()).hex()

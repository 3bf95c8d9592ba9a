"""People's tokens: create and delete. The secret is returned once, and never stored."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from relay.auth.principal import label_problem
from relay.auth.secrets import TOKEN_FORM, digest_of
from relay.control.access.actor import Actor
from relay.control.access.roles import Grant
from relay.control.access.tokens import Token
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.errors import Conflict, Forbidden, NotFound, Problem, Refused

MAX_TOKENS = 1_000
MAX_TOKENS_OF_ONE = 100
_REGION = "region"
"""A scope may name it, although no credential of an agent may."""
_KEPT_MS = 30 * 86_400_000
"""How long an expired token is listed."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The token to make."""

    name: str
    grant: Grant
    expires_s: float
    owner: str = ""
    """Who acts with it; empty for its creator."""
    on_nodes: bool = False


class TokenRegistry:
    """All tokens of people."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def create(self, request: TokenRequest, *, actor: Actor) -> tuple[Token, str]:
        """Make a token.

        Returns:
            (the token, its secret).

        Raises:
            Forbidden: it would allow more than its maker may do, or act as somebody else.
            Conflict: there are too many tokens.
        """
        secret = TOKEN_FORM.make(os.urandom(TOKEN_FORM.chance_bytes))
        digest = digest_of(secret)

        def make(state: State, now_ms: int) -> Change[Token]:
            _check_room(state, request.owner or actor.identity)
            return _create(state, request, digest, actor, now_ms)

        return await self._ledger.change(actor, make), secret

    async def adopt(self, secret: str, request: TokenRequest, *, actor: Actor) -> Token:
        """Accept a token that was made elsewhere, however many there are: it may be the only way back in."""
        digest = digest_of(secret)
        return await self._ledger.change(actor, lambda state, now_ms: _create(state, request, digest, actor, now_ms))

    async def delete(self, token_id: str, *, actor: Actor) -> None:
        """Delete a token. It is refused from then on.

        Raises:
            NotFound: there is no such token.
            Forbidden: it is somebody else's.
        """
        await self._ledger.change(actor, lambda state, _: _delete(state, token_id, actor))

    async def forget_expired(self, now_ms: int, *, actor: Actor) -> None:
        """Forget tokens that ended long ago."""
        ids = {t.id for t in self._ledger.state.tokens.values() if t.expires_ms + _KEPT_MS < now_ms}
        if ids:
            await self._ledger.change(
                actor,
                lambda state, _: Change(
                    dataclasses.replace(state, tokens={k: t for k, t in state.tokens.items() if k not in ids}),
                    None,
                    entries=[Entry("forget", "Token", reason=f"{len(ids)} tokens expired long ago")],
                ),
            )


def _create(state: State, request: TokenRequest, digest: bytes, by: Actor, now_ms: int) -> Change[Token]:
    owner = request.owner or by.identity
    if by.grants is not None:
        if not by.grants.includes(request.grant):
            raise Forbidden(f"a token may do at most what you may: {by.grants}")
        if owner != by.identity and not _is_admin(by):
            raise Forbidden("only an admin without a scope may make tokens for somebody else")
    if reason := label_problem({key: value for key, value in request.grant.scope.items() if key != _REGION}):
        raise Refused([Problem("request", 0, "scope", reason)])
    token = Token(
        digest,
        request.name,
        owner,
        request.grant,
        request.on_nodes,
        now_ms,
        by.name,
        now_ms + round(request.expires_s * 1000),
        by.credential,
    )
    entry = Entry("create", f"Token/{token.id}", reason=f"{token.name}: {token.grant} of {token.owner}")
    return Change(dataclasses.replace(state, tokens={**state.tokens, token.id: token}), token, entries=[entry])


def _delete(state: State, token_id: str, by: Actor) -> Change[None]:
    token = state.tokens.get(token_id)
    if token is None:
        raise NotFound(f"there is no token {token_id}")
    is_own = token.owner == by.identity and by.grants is not None and by.grants.includes(token.grant)
    if not is_own and not _is_admin(by):
        raise Forbidden(
            f"{token_id} is somebody else's, or may do more than you; an admin without a scope may delete it"
        )
    entry = Entry("delete", f"Token/{token_id}", reason=f"{token.name} of {token.owner}")
    rest = {key: value for key, value in state.tokens.items() if key != token_id}
    return Change(dataclasses.replace(state, tokens=rest), None, entries=[entry])


def _is_admin(by: Actor) -> bool:
    return by.grants is None or by.grants.is_admin


def _check_room(state: State, owner: str) -> None:
    if len(state.tokens) >= MAX_TOKENS:
        raise Conflict(f"there are {MAX_TOKENS} tokens, the maximum; delete some")
    if sum(token.owner == owner for token in state.tokens.values()) >= MAX_TOKENS_OF_ONE:
        raise Conflict(f"{owner} has {MAX_TOKENS_OF_ONE} tokens, the maximum for one; delete some")

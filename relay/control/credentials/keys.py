"""Agents' API keys: create, rotate, delete. The secret is returned once, and never stored."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from relay.auth.principal import is_subject, label_problem
from relay.auth.secrets import SecretForm, digest_of, id_of
from relay.control.access.actor import Actor
from relay.control.access.keys import ApiKey, ApiKeys
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.documents import Scalar
from relay.errors import Conflict, Forbidden, Problem, Refused

MAX_KEYS = 100_000
_KEPT_MS = 30 * 86_400_000
"""How long an expired key is listed."""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """The key to make."""

    subject: str
    is_single: bool
    """Whether it is for one agent; else for a fleet that shares it."""
    labels: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    regions: Sequence[str] = ()
    """Where it is accepted; empty for every region."""
    expires_s: float | None = None
    """Its lifetime; None for the one in the settings."""


class KeyRegistry:
    """All keys.

    Args:
        form: what keys look like.
        expires_s: the lifetime of keys that ask for none.
        labels_of: an agent id → the labels of the agents that are known by it.
    """

    def __init__(
        self,
        ledger: Ledger,
        form: SecretForm,
        *,
        expires_s: float,
        labels_of: Callable[[str], Iterable[Mapping[str, object]]] = lambda _: (),
    ) -> None:
        self._labels_of = labels_of
        self._ledger = ledger
        self._form = form
        self._expires_s = expires_s

    @property
    def keys(self) -> ApiKeys:
        """The keys."""
        return self._ledger.state.api_keys

    def _draw(self) -> tuple[str, bytes]:
        """A new secret and its digest. No two keys have the same id."""
        while True:
            secret = self._form.make(os.urandom(self._form.chance_bytes))
            digest = digest_of(secret)
            if id_of(digest) not in self.keys:
                return secret, digest

    async def create(self, request: KeyRequest, *, actor: Actor) -> tuple[ApiKey, str]:
        """Make a key.

        Returns:
            (the key, its secret).

        Raises:
            Refused: the subject or a label is not acceptable.
            Conflict: there are too many keys.
        """
        if reason := problem_with(request):
            raise Refused([reason])
        secret, digest = self._draw()
        key = await self._ledger.change(
            actor, lambda state, now_ms: self._create(state, request, digest, actor, now_ms)
        )
        return key, secret

    def _create(self, state: State, request: KeyRequest, digest: bytes, by: Actor, now_ms: int) -> Change[ApiKey]:
        _check_room(state)
        self._check_subject(state, request.subject, by)
        lifetime_s = self._expires_s if request.expires_s is None else request.expires_s
        key = ApiKey(
            digest,
            request.subject,
            request.is_single,
            dict(request.labels),
            tuple(sorted(set(request.regions))),
            now_ms,
            by.name,
            now_ms + round(lifetime_s * 1000),
        )
        whose = "agent" if key.is_single else "fleet"
        entry = Entry("create", f"ApiKey/{key.id}", reason=f"{whose} {key.subject}")
        return Change(dataclasses.replace(state, api_keys=state.api_keys.put([key])), key, entries=[entry])

    def _check_subject(self, state: State, subject: str, by: Actor) -> None:
        """Who has a scope makes keys for its own agents alone. Labels that it chooses do not make an agent its own."""
        if by.grants is None or not by.grants.is_scoped:
            return
        known = [*(key.labels for key in state.api_keys if key.subject == subject), *self._labels_of(subject)]
        if not all(by.grants.has(labels) for labels in known):
            raise Forbidden(f"{subject} is known outside your scope")

    async def rotate(self, key_id: str, overlap_s: float, *, actor: Actor) -> tuple[ApiKey, str]:
        """Replace a key by one of the same subject. The old one is accepted for `overlap_s` more.

        Raises:
            NotFound: there is no such key.
            Conflict: it was replaced already, or has expired.
        """
        self.keys.find(key_id)
        secret, digest = self._draw()
        key = await self._ledger.change(
            actor, lambda state, now_ms: self._rotate(state, key_id, digest, overlap_s, actor, now_ms)
        )
        return key, secret

    def _rotate(
        self, state: State, key_id: str, digest: bytes, overlap_s: float, by: Actor, now_ms: int
    ) -> Change[ApiKey]:
        old = state.api_keys.find(key_id)
        _check_room(state)
        if old.replaced_by:
            raise Conflict(f"{key_id} was replaced by {old.replaced_by}; rotate that one")
        if old.refused_from_ms <= now_ms:
            raise Conflict(f"{key_id} has expired; create a new one")
        lifetime_ms = old.expires_ms - old.created_ms
        fresh = dataclasses.replace(
            old, digest=digest, created_ms=now_ms, created_by=by.name, expires_ms=now_ms + lifetime_ms
        )
        ends_ms = min(old.refused_from_ms, now_ms + round(overlap_s * 1000))
        replaced = dataclasses.replace(old, expires_ms=ends_ms, replaced_by=fresh.id)
        entry = Entry("rotate", f"ApiKey/{key_id}", reason=f"to {fresh.id}, overlap {overlap_s:g} s")
        keys = state.api_keys.put([fresh, replaced])
        return Change(dataclasses.replace(state, api_keys=keys), fresh, entries=[entry])

    async def delete(self, key_id: str, *, actor: Actor) -> None:
        """Delete a key. Nodes refuse it from then on, and close its sessions.

        Raises:
            NotFound: there is no such key.
        """
        await self._ledger.change(actor, lambda state, _: _delete(state, key_id))

    def expiring(self, now_ms: int, within_ms: int) -> int:
        """How many keys end soon and were not replaced."""
        return sum(not k.replaced_by and now_ms < k.expires_ms <= now_ms + within_ms for k in self.keys)

    def expired(self, now_ms: int) -> list[str]:
        """Ids of keys that ended long ago."""
        return [key.id for key in self.keys if key.refused_from_ms + _KEPT_MS < now_ms]

    async def forget_expired(self, now_ms: int, *, actor: Actor) -> None:
        """Forget keys that ended long ago."""
        if ids := self.expired(now_ms):
            await self._ledger.change(
                actor,
                lambda state, _: Change(
                    dataclasses.replace(state, api_keys=state.api_keys.without(ids)),
                    None,
                    entries=[Entry("forget", "ApiKey", reason=f"{len(ids)} keys expired long ago")],
                ),
            )


def _check_room(state: State) -> None:
    if len(state.api_keys) >= MAX_KEYS:
        raise Conflict(f"there are {MAX_KEYS} API keys, the maximum; delete some")


def _delete(state: State, key_id: str) -> Change[None]:
    key = state.api_keys.find(key_id)
    entry = Entry("delete", f"ApiKey/{key_id}", reason=key.subject)
    return Change(dataclasses.replace(state, api_keys=state.api_keys.without([key_id])), None, entries=[entry])


def problem_with(request: KeyRequest) -> Problem | None:
    """Why a key cannot be made; None if it can."""
    if not is_subject(request.subject):
        return Problem("request", 0, "subject", "must be printable text of 1 to 256 characters")
    if reason := label_problem(request.labels):
        return Problem("request", 0, "labels", reason)
    return None

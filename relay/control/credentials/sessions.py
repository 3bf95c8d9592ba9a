"""Sessions of people: begun by a login, ended by a logout or their time."""

from __future__ import annotations

import dataclasses
import os

from relay.auth.openid import Person
from relay.auth.secrets import SESSION_FORM, digest_of
from relay.control.access.actor import SYSTEM, Actor
from relay.control.access.sessions import Session
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.errors import Conflict, Forbidden, NotFound

MAX_SESSIONS = 10_000
MAX_SESSIONS_OF_ONE = 20
"""The oldest goes where somebody logs in once more."""


class SessionRegistry:
    """All sessions.

    Args:
        lifetime_s: how long one lasts.
    """

    def __init__(self, ledger: Ledger, lifetime_s: float) -> None:
        self._ledger = ledger
        self._lifetime_ms = round(lifetime_s * 1000)

    async def begin(self, person: Person, *, address: str) -> tuple[Session, str]:
        """Begin a session.

        Returns:
            (what is kept of it, its secret).

        Raises:
            Conflict: there are too many.
        """
        secret = SESSION_FORM.make(os.urandom(SESSION_FORM.chance_bytes))
        digest = digest_of(secret)
        actor = Actor(person.user, verified=True, address=address, owner=person.owner)
        session = await self._ledger.change(
            actor, lambda state, now_ms: _begun(state, person, digest, now_ms, self._lifetime_ms)
        )
        return session, secret

    async def end(self, session_id: str, *, actor: Actor) -> None:
        """End a session: its secret is refused from then on.

        Raises:
            NotFound: there is none.
            Forbidden: it is somebody else's, and `actor` is no admin.
        """
        await self._ledger.change(actor, lambda state, _: _ended(state, session_id, actor))

    async def forget_expired(self, now_ms: int) -> None:
        """Forget sessions that are over."""
        if any(session.expires_ms <= now_ms for session in self._ledger.state.sessions.values()):
            await self._ledger.change(
                SYSTEM, lambda state, _: Change(dataclasses.replace(state, sessions=_going(state, now_ms)), None)
            )


def _going(state: State, now_ms: int) -> dict[str, Session]:
    return {key: session for key, session in state.sessions.items() if session.expires_ms > now_ms}


def _begun(state: State, person: Person, digest: bytes, now_ms: int, lifetime_ms: int) -> Change[Session]:
    going = _going(state, now_ms)
    own = sorted((s for s in going.values() if s.owner == person.owner), key=lambda session: session.created_ms)
    for session in own[: max(0, len(own) + 1 - MAX_SESSIONS_OF_ONE)]:
        del going[session.id]
    if len(going) >= MAX_SESSIONS:
        raise Conflict(f"there are {MAX_SESSIONS} sessions, the maximum")
    session = Session(digest, person.owner, person.user, person.groups, now_ms, now_ms + lifetime_ms)
    entry = Entry("login", f"Session/{session.id}", reason=person.owner)
    return Change(dataclasses.replace(state, sessions={**going, session.id: session}), session, entries=[entry])


def _ended(state: State, session_id: str, by: Actor) -> Change[None]:
    session = state.sessions.get(session_id)
    if session is None:
        raise NotFound("this is no session")
    if session.owner != by.identity and by.grants is not None and not by.grants.is_admin:
        raise Forbidden(f"{session_id} is somebody else's; an admin without a scope may end it")
    rest = {key: session for key, session in state.sessions.items() if key != session_id}
    entry = Entry("logout", f"Session/{session_id}")
    return Change(dataclasses.replace(state, sessions=rest), None, entries=[entry])

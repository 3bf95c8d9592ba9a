"""The registries of all credentials."""

from __future__ import annotations

from dataclasses import dataclass

from relay.control.access.actor import SYSTEM
from relay.control.credentials.keys import KeyRegistry
from relay.control.credentials.revocations import RevocationRegistry
from relay.control.credentials.sessions import SessionRegistry
from relay.control.credentials.tokens import TokenRegistry


@dataclass(frozen=True, slots=True)
class Credentials:
    """All of them."""

    keys: KeyRegistry
    tokens: TokenRegistry
    revocations: RevocationRegistry
    sessions: SessionRegistry

    async def forget_expired(self, now_ms: int) -> None:
        """Forget what ended long ago.

        Raises:
            StoreError: the database failed.
        """
        await self.keys.forget_expired(now_ms, actor=SYSTEM)
        await self.tokens.forget_expired(now_ms, actor=SYSTEM)
        await self.sessions.forget_expired(now_ms)

"""Credentials that are taken away before they end."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from relay.auth.principal import Method, Principal


class Kind(enum.StrEnum):
    """What a revocation names."""

    SUBJECT = "subject"
    AGENT = "agent"
    JTI = "jti"
    CERTIFICATE = "certificate"
    KEY = "key"


_KIND_OF_CREDENTIAL = {Method.JWT: Kind.JTI, Method.API_KEY: Kind.KEY, Method.MTLS: Kind.CERTIFICATE}


class Revocations:
    """All revocations in force."""

    def __init__(self, revoked: Iterable[tuple[Kind, str]] = ()) -> None:
        self._revoked = frozenset(revoked)

    def revokes(self, principal: Principal) -> bool:
        """Whether a caller may no longer connect as what it is."""
        if not self._revoked:
            return False
        names = (
            (Kind.SUBJECT, principal.subject),
            (Kind.AGENT, principal.agent_id),
            (_KIND_OF_CREDENTIAL[principal.method], principal.credential_id),
        )
        return any(name in self._revoked for name in names)

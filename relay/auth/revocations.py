"""Credentials that are taken away before they end."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from typing import Any

from relay.auth.principal import Method, Principal

MAX_REVOCATIONS = 10_000


class Kind(enum.StrEnum):
    """What a revocation names."""

    SUBJECT = "subject"
    AGENT = "agent"
    JTI = "jti"
    CERTIFICATE = "certificate"
    KEY = "key"


_KIND_OF_CREDENTIAL = {Method.JWT: Kind.JTI, Method.API_KEY: Kind.KEY, Method.MTLS: Kind.CERTIFICATE}


_OTHER_KINDS = ("token", "node")
"""Of people and of nodes."""


class Revocations:
    """All revocations in force."""

    def __init__(self, revoked: Iterable[tuple[Kind, str]] = ()) -> None:
        self._revoked = frozenset(revoked)

    def __or__(self, other: Revocations) -> Revocations:
        """Those of either."""
        return Revocations(self._revoked | other._revoked)

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


def read_revocations(content: bytes) -> Revocations:
    """Read a JSON list of objects with `kind` and `value`. Kinds that do not concern agents are left out.

    Raises:
        ValueError: not such a list, or one that is too long.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(entries, list):
        raise ValueError("not a list")
    if len(entries) > MAX_REVOCATIONS:
        raise ValueError(f"{len(entries)} revocations are more than the maximum, {MAX_REVOCATIONS}")
    return Revocations(pair for number, entry in enumerate(entries) if (pair := _pair(number, entry)) is not None)


def _pair(number: int, entry: Any) -> tuple[Kind, str] | None:
    kind, value = (entry.get("kind"), entry.get("value")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(value, str) or not value:
        raise ValueError(f"entry {number}: must be an object with a kind and a value")
    if kind in _OTHER_KINDS:
        return None
    try:
        return Kind(kind), value
    except ValueError:
        # One that is not understood must not count as in force.
        raise ValueError(f"entry {number}: {kind} is not one of {', '.join([*Kind, *_OTHER_KINDS])}") from None

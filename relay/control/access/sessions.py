"""Sessions of people who logged in at an OpenID provider: what is kept of them, and what their holders may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.auth.secrets import id_of
from relay.control.access.roles import Grant, Grants, Role
from relay.policy.role_binding import RoleBinding


@dataclass(frozen=True, slots=True)
class Session:
    """A session, without the secret."""

    digest: bytes
    """SHA-256 of the secret."""
    owner: str
    """ISSUER|SUB: what tells people apart."""
    user: str
    """The person's name, as role bindings have it."""
    groups: tuple[str, ...]
    created_ms: int
    expires_ms: int

    @property
    def id(self) -> str:
        """The name by which people refer to it."""
        return id_of(self.digest, "session")

    def grants(self, bindings: Iterable[RoleBinding]) -> Grants:
        """What role bindings allow its holder now."""
        given = (
            Grant(Role(binding.spec.role), binding.spec.scope.labels)
            for binding in sorted(bindings, key=lambda binding: binding.key)
            if any(s.user == self.user if s.user is not None else s.group in self.groups for s in binding.spec.subjects)
        )
        return Grants(tuple(given))

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {
            "digest": self.digest.hex(),
            "owner": self.owner,
            "user": self.user,
            "groups": list(self.groups),
            "created_ms": self.created_ms,
            "expires_ms": self.expires_ms,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Session:
        """The reverse of `plain`."""
        return cls(**{**value, "digest": bytes.fromhex(value["digest"]), "groups": tuple(value["groups"])})

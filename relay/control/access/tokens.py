"""People's tokens: what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.auth.secrets import id_of
from relay.control.access.roles import Grant, Role


@dataclass(frozen=True, slots=True)
class Token:
    """A token, without the secret."""

    digest: bytes
    """SHA-256 of the secret."""
    name: str
    """What it is for."""
    owner: str
    """Who acts with it: its creator, or whom an admin named."""
    grant: Grant
    on_nodes: bool
    """Whether nodes accept it too, for reading."""
    created_ms: int
    created_by: str
    expires_ms: int
    made_with: str = ""
    """Id of the credential by which it was made: if that was stolen, this one may be the thief's."""

    @property
    def id(self) -> str:
        """The name by which people refer to it."""
        return id_of(self.digest, "token")

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {
            "digest": self.digest.hex(),
            "name": self.name,
            "owner": self.owner,
            "role": self.grant.role.value,
            "scope": dict(self.grant.scope),
            "on_nodes": self.on_nodes,
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "expires_ms": self.expires_ms,
            "made_with": self.made_with,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Token:
        """The reverse of `plain`."""
        return cls(
            bytes.fromhex(value["digest"]),
            value["name"],
            value["owner"],
            Grant(Role(value["role"]), value["scope"]),
            value["on_nodes"],
            value["created_ms"],
            value["created_by"],
            value["expires_ms"],
            value.get("made_with", ""),
        )

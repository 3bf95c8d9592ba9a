"""Nodes that joined, and the tokens by which they may: what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JoinGrant:
    """A join token, without its secret."""

    id: str
    digest: str
    """SHA-256 of the secret, hex."""
    region: str
    name: str
    """The name that the node must have; empty for any."""
    uses: int
    """How many nodes may join by it."""
    replaces: bool
    """Whether a node may take the name of one that joined before."""
    created_ms: int
    created_by: str
    expires_ms: int
    joined: tuple[tuple[str, str], ...] = ()
    """(name, digest of the key) of the nodes that joined by it."""

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {
            "id": self.id,
            "digest": self.digest,
            "region": self.region,
            "name": self.name,
            "uses": self.uses,
            "replaces": self.replaces,
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "expires_ms": self.expires_ms,
            "joined": [list(pair) for pair in self.joined],
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> JoinGrant:
        """The reverse of `plain`."""
        joined = tuple((str(name), str(digest)) for name, digest in value["joined"])
        return cls(**{**value, "joined": joined})


@dataclass(frozen=True, slots=True)
class JoinedNode:
    """A node that joined."""

    region: str
    name: str
    key_digest: str
    """SHA-256 of its public key, hex."""
    not_after_ms: int
    """When its last certificate ends."""
    joined_ms: int
    grant: str
    """Id of the token by which it joined."""
    revoked: str = ""
    """Why its identity was taken away; empty if it was not."""
    revoked_keys: tuple[str, ...] = ()
    """Digests of its keys that were revoked before: none of them ever joins again."""
    serial: str = ""
    """Of its last certificate, hex."""
    ca: str = ""
    """SHA-256 of the CA that issued its last certificate, hex; empty if that was before CAs could be replaced."""

    @property
    def id(self) -> str:
        """REGION/NAME."""
        return f"{self.region}/{self.name}"

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {name: getattr(self, name) for name in self.__slots__} | {"revoked_keys": list(self.revoked_keys)}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> JoinedNode:
        """The reverse of `plain`."""
        return cls(**{**value, "revoked_keys": tuple(value["revoked_keys"])})

"""Who makes a change."""

from __future__ import annotations

from dataclasses import dataclass

from relay.control.access.roles import Grants


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change, as the audit records it."""

    name: str
    """Whose credential it was, or who the caller said it is."""
    verified: bool = False
    """Whether a credential proved it."""
    credential: str = ""
    """Id of the credential."""
    address: str = ""
    """Where the request came from; empty if nobody had to authenticate."""
    grants: Grants | None = None
    """What it may do; None for everything."""
    owner: str = ""
    """Who that is to the issuer of the credential: two people may have one name. Empty where the name says it."""

    @property
    def identity(self) -> str:
        """What tells people apart."""
        return self.owner or self.name


SYSTEM = Actor("system")
"""The actor of automatic decisions."""
ANONYMOUS = Actor("anonymous")
"""The actor of a request that names nobody, where nobody has to."""

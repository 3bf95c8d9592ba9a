"""Who makes a change."""

from __future__ import annotations

from dataclasses import dataclass

from relay.control.access.roles import Grant


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change, as the audit records it."""

    name: str
    """Whose credential it was, or who the caller said it is. `four_eyes` compares it."""
    verified: bool = False
    """Whether a credential proved it."""
    credential: str = ""
    """Id of the credential."""
    address: str = ""
    """Where the request came from; empty if nobody had to authenticate."""
    grant: Grant | None = None
    """What it may do; None for everything."""


SYSTEM = Actor("system")
"""The actor of automatic decisions."""
ANONYMOUS = Actor("anonymous")
"""The actor of a request that names nobody, where nobody has to."""

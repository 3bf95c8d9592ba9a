"""The actor of a request, and what it may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Query, Request

from relay.control.access import actor as access
from relay.control.access.roles import Verb
from relay.errors import Forbidden

_Claimed = Annotated[
    str | None,
    Header(
        alias="X-OpAMP-Actor",
        min_length=1,
        max_length=256,
        pattern=r"^[\x20-\x7e]*$",
        description="who makes the request, in printable ASCII; unverified; refused where people authenticate",
    ),
]


def _actor(request: Request, claimed: _Claimed = None) -> access.Actor:
    authenticated = getattr(request.state, "actor", None)
    if isinstance(authenticated, access.Actor):
        return authenticated
    return access.Actor(claimed) if claimed is not None else access.ANONYMOUS


Actor = Annotated[access.Actor, Depends(_actor)]
"""Who makes a request: proved by a credential, or as the caller says where nobody needs one."""
Reveal = Annotated[bool, Query(description="with secrets, where people authenticate; needs the verb reveal")]


def is_masked(actor: access.Actor, reveal: bool) -> bool:
    """Whether secrets must be masked in a response.

    Raises:
        Forbidden: they were asked for, and the role does not allow it.
    """
    if actor.grants is None:
        return False
    if reveal and not actor.grants.allows(Verb.REVEAL):
        raise Forbidden(f"the {actor.grants.described_roles} may not reveal secrets")
    if reveal and not actor.grants.may_reveal_all():
        raise Forbidden("you may reveal less than you may read: use a token that may do no more than reveal that")
    return not reveal


def scopes_of(actor: access.Actor) -> tuple[frozenset[tuple[str, str]], ...]:
    """Labels of the agents that somebody may know of: those of any of the scopes. Empty for all agents."""
    return tuple(frozenset(scope.items()) for scope in actor.grants.scopes) if actor.grants is not None else ()

"""Which agent people mean: by what it is called, or by the beginning of that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from relay.errors import Conflict, NotFound
from relay.ids import format_uid

HOST = "host.name"
VERSION = "service.version"
LEAST_PREFIX = 4
"""The fewest characters that a name may be shortened to."""
_SHOWN = 5
"""Agents that are named where a prefix fits several."""
T = TypeVar("T")


class Names(NamedTuple):
    """What an agent is called."""

    agent_id: str
    uid: bytes
    host: str
    """host.name; empty where it says none."""

    def begin_with(self, text: str) -> bool:
        """Whether one of them does."""
        return any(name.startswith(text) for name in (self.agent_id, format_uid(self.uid), self.uid.hex(), self.host))


def resolve(name: str, known: Iterable[tuple[Names, T]]) -> T:
    """An agent by agent id, host.name, or the beginning of one of these or its instance_uid that no other agent has.

    Raises:
        NotFound: nobody knows it.
        Conflict: several agents fit.
    """
    known = list(known)
    for names, agent in known:
        if names.agent_id == name:
            return agent
    fits = [(names, agent) for names, agent in known if names.host == name]
    if not fits and len(name) >= LEAST_PREFIX:
        fits = [(names, agent) for names, agent in known if names.begin_with(name)]
    if not fits:
        short = f"; a name may be shortened to {LEAST_PREFIX} characters" if len(name) < LEAST_PREFIX else ""
        raise NotFound(f"no agent {name} is known{short}")
    if len(fits) > 1:
        shown = ", ".join(sorted(names.agent_id for names, _ in fits)[:_SHOWN])
        rest = f" and {len(fits) - _SHOWN} more" if len(fits) > _SHOWN else ""
        raise Conflict(f"{name} matches {len(fits)} agents: {shown}{rest}")
    return fits[0][1]

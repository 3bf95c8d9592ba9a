"""Look up an agent by one of its names, or by a prefix of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from relay.errors import Conflict, NotFound
from relay.ids import format_uid

HOST = "host.name"
VERSION = "service.version"
MIN_PREFIX_CHARS = 4
"""The least number of characters of a prefix."""
_MAX_LISTED = 5
"""Agents to list when a prefix is ambiguous."""
T = TypeVar("T")


class Names(NamedTuple):
    """The names of an agent."""

    agent_id: str
    uid: bytes
    host: str
    """host.name; empty if the agent reports none."""

    def begin_with(self, text: str) -> bool:
        """Whether one of the names begins with `text`."""
        return any(name.startswith(text) for name in (self.agent_id, format_uid(self.uid), self.uid.hex(), self.host))


def resolve(name: str, known: Iterable[tuple[Names, T]]) -> T:
    """Find the agent with this agent id or host.name, or with a unique prefix of these or of its instance_uid.

    Raises:
        NotFound: no agent matches.
        Conflict: several agents match.
    """
    known = list(known)
    for names, agent in known:
        if names.agent_id == name:
            return agent
    matches = [(names, agent) for names, agent in known if names.host == name]
    if not matches and len(name) >= MIN_PREFIX_CHARS:
        matches = [(names, agent) for names, agent in known if names.begin_with(name)]
    if not matches:
        hint = f"; a prefix needs at least {MIN_PREFIX_CHARS} characters" if len(name) < MIN_PREFIX_CHARS else ""
        raise NotFound(f"no agent matches {name}{hint}")
    if len(matches) > 1:
        listed = ", ".join(sorted(names.agent_id for names, _ in matches)[:_MAX_LISTED])
        rest = f" and {len(matches) - _MAX_LISTED} more" if len(matches) > _MAX_LISTED else ""
        raise Conflict(f"{name} matches {len(matches)} agents: {listed}{rest}")
    return matches[0][1]

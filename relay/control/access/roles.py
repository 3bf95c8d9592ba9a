"""Roles: what each may do, and for which agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from relay.policy.model import Selector
from relay.policy.selector import implies


class Verb(StrEnum):
    """What a request does."""

    READ = "read"
    """Everything that can be read, with secrets masked; and previews of changes."""
    REVEAL = "reveal"
    """Values that are masked, and the bytes of packages."""
    WRITE = "write"
    """Apply, delete, undo; push and prefetch packages."""
    APPROVE = "approve"
    """Approve or reject a change."""
    OPERATE = "operate"
    """Pause, resume, promote, roll back, abort and retry rollouts; yank packages; forget nodes."""
    REVOKE = "revoke"
    """Make and revoke agents' credentials."""
    ADMIN = "admin"
    """Keys that packages are signed with, other people's tokens, the epoch."""


class Role(StrEnum):
    """What people are made."""

    VIEWER = "viewer"
    AUTHOR = "author"
    APPROVER = "approver"
    OPERATOR = "operator"
    ADMIN = "admin"


VERBS: Mapping[Role, frozenset[Verb]] = {
    Role.VIEWER: frozenset({Verb.READ}),
    Role.AUTHOR: frozenset({Verb.READ, Verb.REVEAL, Verb.WRITE}),
    Role.APPROVER: frozenset({Verb.READ, Verb.APPROVE}),
    Role.OPERATOR: frozenset({Verb.READ, Verb.OPERATE, Verb.REVOKE}),
    Role.ADMIN: frozenset(Verb),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, for the agents with certain labels."""

    role: Role
    scope: Mapping[str, str] = field(default_factory=dict)
    """Labels; empty for all agents."""

    def allows(self, verb: Verb) -> bool:
        """Whether the role may do this at all."""
        return verb in VERBS[self.role]

    def covers(self, selector: Selector) -> bool:
        """Whether every agent that a selector matches is in the scope."""
        return not self.scope or implies(selector, Selector(labels=dict(self.scope)))

    def has(self, labels: Mapping[str, object]) -> bool:
        """Whether an agent with these labels is in the scope."""
        return all(labels.get(key) == value for key, value in self.scope.items())

    def includes(self, other: Grant) -> bool:
        """Whether who has this grant may give `other` to a token."""
        return VERBS[other.role] <= VERBS[self.role] and other.scope.items() >= self.scope.items()

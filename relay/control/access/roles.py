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

    def __str__(self) -> str:
        """As in `author for team=a`."""
        return f"{self.role.value} for {self.described_scope}" if self.scope else self.role.value

    @property
    def described_scope(self) -> str:
        """As in `team=a, region=eu`."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self.scope.items()))


@dataclass(frozen=True, slots=True)
class Grants:
    """All that somebody may do. What one grant allows for some agents, another does not allow for others."""

    each: tuple[Grant, ...]

    def allows(self, verb: Verb) -> bool:
        """Whether any of them allows this at all."""
        return any(grant.allows(verb) for grant in self.each)

    def to(self, verb: Verb) -> Grants:
        """Those that allow a verb."""
        return Grants(tuple(grant for grant in self.each if grant.allows(verb)))

    @property
    def scopes(self) -> tuple[Mapping[str, str], ...]:
        """Labels of the agents concerned: those of any of them. Empty for all agents."""
        if not self.each:
            return ({"": ""},)  # no agent has such a label
        return tuple(grant.scope for grant in self.each) if self.is_scoped else ()

    @property
    def is_scoped(self) -> bool:
        """Whether they are for some agents only."""
        return all(grant.scope for grant in self.each)

    @property
    def is_admin(self) -> bool:
        """Whether one of them allows everything for all agents."""
        return any(grant.allows(Verb.ADMIN) and not grant.scope for grant in self.each)

    def covers(self, selector: Selector) -> bool:
        """Whether every agent that a selector matches is in the scope of one of them."""
        return any(grant.covers(selector) for grant in self.each)

    def has(self, labels: Mapping[str, object]) -> bool:
        """Whether an agent with these labels is in the scope of one of them."""
        return any(grant.has(labels) for grant in self.each)

    def includes(self, other: Grant) -> bool:
        """Whether who has them may give `other` to a token."""
        return any(grant.includes(other) for grant in self.each)

    def may_reveal_all(self) -> bool:
        """Whether everything that they let one read may be read with its secrets."""
        revealing = [grant.scope for grant in self.each if grant.allows(Verb.REVEAL)]
        covered = [any(scope.items() <= grant.scope.items() for scope in revealing) for grant in self.each]
        return bool(covered) and all(covered)

    def __str__(self) -> str:
        """As in `author for team=a; viewer`."""
        return "; ".join(map(str, self.each))

    @property
    def described_scope(self) -> str:
        """As in `team=a; team=b`."""
        return "; ".join(grant.described_scope for grant in self.each)

    @property
    def described_roles(self) -> str:
        """As in `role author`, or `roles author, viewer`."""
        if not self.each:
            return "person without a RoleBinding"
        roles = sorted({grant.role.value for grant in self.each})
        return f"role{'s' if len(roles) > 1 else ''} {', '.join(roles)}"

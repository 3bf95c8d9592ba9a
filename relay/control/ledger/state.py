"""The control plane's whole authoritative state, as one immutable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relay.control.access.keys import ApiKeys
from relay.control.access.nodes import JoinedNode, JoinGrant
from relay.control.access.revocations import Revocation
from relay.control.access.sessions import Session
from relay.control.access.tokens import Token
from relay.control.ledger.catalog import Catalog
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import GlobalConfig, Pinned
from relay.control.storage.schema import FIRST_EPOCH
from relay.control.trust.rotation import Keys


@dataclass(frozen=True, slots=True)
class State:
    """What is in force. What agents report is not part of it; see `fleet`."""

    catalog: Catalog = field(default_factory=Catalog)
    assignments: Mapping[str, AssignmentState] = field(default_factory=dict)
    """Name → state of the assignment between its revisions."""
    deleted_assignments: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Deleted assignment → its last (number, retry): rollout names and retry generations are never reused."""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Resource name → payload of every RegionVariables and Package that a revision pins, including old ones."""
    prefetches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Region → SHA-256 of the package files that it fetches before an agent needs them."""
    epoch: int = FIRST_EPOCH
    """The epoch of everything published from now on."""
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    """Keys of agents."""
    tokens: Mapping[str, Token] = field(default_factory=dict)
    """Tokens of people, by id."""
    sessions: Mapping[str, Session] = field(default_factory=dict)
    """Sessions of people who logged in at an OpenID provider, by id."""
    revocations: Mapping[str, Revocation] = field(default_factory=dict)
    """Credentials of agents that are refused, by id."""
    join_grants: Mapping[str, JoinGrant] = field(default_factory=dict)
    """Tokens by which nodes may join, by id."""
    joined_nodes: Mapping[str, JoinedNode] = field(default_factory=dict)
    """Nodes that joined, by REGION/NAME."""
    keys: Keys = field(default_factory=Keys)
    """The control plane's own keys."""

    @property
    def pinned(self) -> Pinned:
        """The contents that revisions pin."""
        return Pinned(self.catalog.templates, self.contents)

    def users_of_template(self, key: str) -> set[str]:
        """Assignments that name this NAME@VERSION, or have a revision that uses it."""
        naming = {a.key for a in self.catalog.assignments.values() if a.spec.template.key == key}
        return naming | {
            name
            for name, assignment in self.assignments.items()
            if any(isinstance(r, GlobalConfig) and r.template == key for r in assignment.revisions)
        }

    def users_of_package(self, key: str) -> set[str]:
        """Assignments that have a revision with this NAME@VERSION."""
        return {name for name, a in self.assignments.items() if any(key in r.versions for r in a.revisions)}

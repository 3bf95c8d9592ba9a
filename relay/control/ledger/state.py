"""Everything that the control plane holds to be true, as one value that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relay.control.ledger.catalog import Catalog
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import GlobalConfig, Pinned
from relay.control.storage.schema import FIRST_EPOCH


@dataclass(frozen=True, slots=True)
class State:
    """What is in force. Another truth, what agents report, is the fleet's."""

    catalog: Catalog = field(default_factory=Catalog)
    assignments: Mapping[str, AssignmentState] = field(default_factory=dict)
    """Name → where the assignment is between its revisions."""
    gone: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Assignment that was deleted → (number, retry) that it had reached: names and generations are never used twice."""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Resource name → payload of every RegionVariables and Package that a revision pins, old ones too."""
    prefetches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Region → SHA-256 of package files that it should have before anybody needs them."""
    epoch: int = FIRST_EPOCH
    """Of all that is published from now on."""

    @property
    def pinned(self) -> Pinned:
        """The contents that revisions pin."""
        return Pinned(self.catalog.templates, self.contents)

    def users_of_template(self, key: str) -> set[str]:
        """Assignments that ask for this NAME@VERSION, or of which a revision pins it."""
        asking = {a.key for a in self.catalog.assignments.values() if a.spec.template.key == key}
        return asking | {
            name
            for name, assignment in self.assignments.items()
            if any(isinstance(r, GlobalConfig) and r.template == key for r in assignment.revisions)
        }

    def users_of_package(self, key: str) -> set[str]:
        """Assignments of which a revision pins this NAME@VERSION."""
        return {name for name, held in self.assignments.items() if any(key in r.versions for r in held.revisions)}

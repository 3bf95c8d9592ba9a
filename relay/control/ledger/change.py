"""A change: the next state, and what is recorded with it in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from relay.control.ledger.state import State
from relay.control.rollouts.rollout import Rollout

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """One audit entry. The ledger adds who did it and when."""

    action: str
    subject: str
    """KIND/NAME."""
    before: str = ""
    """Digest of the previous value; empty if there was none."""
    after: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A new rollout, or a rollout that changed state."""

    after: Rollout
    before: Rollout | None = None
    action: str = ""
    """The audit action of a person; empty to use the new state's name."""
    reason: str = ""
    """Why, if other than the rollout's own reason."""
    quiet: bool = False
    """Only store it: no audit entry, no notification."""

    @property
    def entry(self) -> Entry:
        """Its entry in the audit."""
        return Entry(
            self.action or self.after.state.value,
            f"Rollout/{self.after.name}",
            _digest(self.before) if self.before is not None else "",
            _digest(self.after),
            self.reason or self.after.reason,
        )


def _digest(rollout: Rollout) -> str:
    return f"{rollout.state.value}:{rollout.stage}:{rollout.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Removal:
    """Rows of another owner to delete in the same transaction."""

    table: sa.Table
    keys: Sequence[Mapping[str, Any]]
    """Primary keys: column → value."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """A change to make. The ledger compares the states before and after, and stores the differences."""

    state: State
    result: T
    """The result for the caller, once the change is in force."""
    steps: Sequence[Step] = field(default=())
    """Steps of rollouts, in order."""
    entries: Sequence[Entry] = field(default=())
    """Audit entries, in addition to those of the steps."""
    removals: Sequence[Removal] = field(default=())

    def is_nothing_to(self, before: State) -> bool:
        """Whether it changes nothing."""
        return self.state is before and not self.steps and not self.entries and not self.removals

"""A change: the next state, and what is written down of it in the same transaction."""

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
    """One thing that was done, for the audit; who did it and when is the ledger's to say."""

    action: str
    subject: str
    """KIND/NAME."""
    before: str = ""
    """Digest of what was, empty for nothing."""
    after: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A rollout that is new, or that took a step."""

    after: Rollout
    before: Rollout | None = None
    action: str = ""
    """What a person did, in the audit's words; empty: its new state says it."""
    reason: str = ""
    """Why, where it is not the rollout's own reason."""
    quiet: bool = False
    """It is only written down; nobody is told."""

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
    """Rows of another owner that go in the same transaction."""

    table: sa.Table
    keys: Sequence[Mapping[str, Any]]
    """Values of the primary key's columns."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What a change is made of. What differs between the state before and the next is found, and written, by the ledger."""

    state: State
    answer: T
    """For who asked for the change, once it is in force."""
    steps: Sequence[Step] = field(default=())
    """Of rollouts, in their order."""
    entries: Sequence[Entry] = field(default=())
    """For the audit, beside those of the steps."""
    removals: Sequence[Removal] = field(default=())

    def is_nothing_to(self, before: State) -> bool:
        """Whether it changes nothing."""
        return self.state is before and not self.steps and not self.entries and not self.removals

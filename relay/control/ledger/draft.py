"""The next state, while a change is prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from relay.control.ledger.catalog import Catalog
from relay.control.ledger.change import Change, Entry, Step
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import Rollout

T = TypeVar("T")


class Draft:
    """Collects the consequences of a change. Nothing takes effect until the ledger has stored it.

    Args:
        before: the state before the change.
        catalog: the new catalog, if it changes.
        contents: new resources that revisions can pin, in addition to the pinned ones.
    """

    def __init__(
        self, before: State, *, catalog: Catalog | None = None, contents: Mapping[str, bytes] | None = None
    ) -> None:
        self.before = before
        self.catalog = catalog or before.catalog
        self.assignments = dict(before.assignments)
        self.deleted_assignments = dict(before.deleted_assignments)
        self._contents = {**before.contents, **(contents or {})}
        self._steps: dict[str, Step] = {}

    def add_step(self, rollout: Rollout, before: Rollout | None = None, *, quiet: bool = False) -> None:
        """Add a new rollout, or one that changed state."""
        earlier = self._steps.get(rollout.name)
        if earlier is not None:
            self._steps[rollout.name] = dataclasses.replace(earlier, after=rollout)
        else:
            self._steps[rollout.name] = Step(rollout, before, quiet=quiet)

    def record_action(self, name: str, before: Rollout, action: str, reason: str) -> None:
        """Record which action of a person changed a rollout's state, and why. It comes first in the audit."""
        step = dataclasses.replace(self._steps.pop(name), before=before, action=action, reason=reason)
        self._steps = {name: step, **self._steps}

    @property
    def rollouts(self) -> list[Rollout]:
        """The rollouts that are new or changed state, in their new state."""
        return [step.after for step in self._steps.values()]

    @property
    def state(self) -> State:
        """The state so far."""
        return dataclasses.replace(
            self.before,
            catalog=self.catalog,
            assignments=MappingProxyType(self.assignments),
            deleted_assignments=MappingProxyType(self.deleted_assignments),
            contents=MappingProxyType(self._contents),
        )

    def change(self, answer: T, entries: Iterable[Entry] = ()) -> Change[T]:
        """The finished change. Drops contents that no revision pins any more."""
        pins = {pin for state in self.assignments.values() for pin in _pins(state)}
        contents = {name: payload for name, payload in self._contents.items() if name in pins}
        state = dataclasses.replace(self.state, contents=contents)
        return Change(state, answer, tuple(self._steps.values()), tuple(entries))


def _pins(state: AssignmentState) -> set[str]:
    return {pin for revision in (*state.revisions, *state.earlier) for pin in revision.pins}

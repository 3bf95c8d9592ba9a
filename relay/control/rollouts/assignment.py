"""Assignments and their revisions: which is stable, which is rolling out, and the effect of a rollout's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.control.rollouts.revision import GlobalRevision, revision_from_plain
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.policy.published import Published

_MAX_LAYERS = 8
"""How many superseded rollouts are kept; agents of older ones go to the stable revision."""
_MAX_EARLIER = 3
"""How many formerly stable revisions are kept; see `AssignmentState.earlier`."""


@dataclass(frozen=True, slots=True)
class AssignmentState:
    """An assignment and its revisions."""

    name: str
    kind: str
    observe_only: bool = False
    """The stable revision is not offered, only compared with what agents run."""
    number: int = 0
    """The number of rollouts so far."""
    retry: int = 0
    """Failures of an earlier retry generation are forgiven."""
    stable: GlobalRevision | None = None
    declared: GlobalRevision | None = None
    """The revision its document asks for, whether it was rolled out or not."""
    rollout: Rollout | None = None
    """The current rollout, or the last one that started."""
    pending: Rollout | None = None
    """The rollout that waits for approval."""
    layers: tuple[Rollout, ...] = ()
    """Superseded rollouts, newest first. Their agents keep their candidates until the current rollout reaches them."""
    earlier: tuple[GlobalRevision, ...] = ()
    """Formerly stable revisions, newest first, for agents that cannot apply a later one."""
    flawed: bool = False
    """No agent could apply the stable revision, so it is no fallback."""

    @property
    def in_force(self) -> list[GlobalRevision]:
        """All revisions that agents have, or must be taken off."""
        if self.observe_only:
            return []
        out = self.rollout is not None and self.rollout.state in GOING | {RolloutState.ROLLING_BACK}
        going = [self.rollout.candidate] if out and self.rollout is not None else []
        revisions = [self.stable, *going, *(layer.candidate for layer in self.layers)]
        return [revision for revision in revisions if revision is not None]

    @property
    def revisions(self) -> list[GlobalRevision]:
        """All revisions that agents have or may get."""
        waiting = [self.stable, self.declared, self.pending.candidate if self.pending is not None else None]
        return [*self.in_force, *(revision for revision in waiting if revision is not None)]

    @property
    def latest(self) -> str:
        """The name of the newest rollout that was not rejected; empty if there is none."""
        newest = self.pending or self.rollout
        return newest.name if newest is not None else ""

    @property
    def asked(self) -> tuple[int, bool]:
        """(approvals, four eyes) that the current rollouts ask for: the next change needs at least this."""
        going = [self.rollout.asked] if self.rollout is not None else []
        going += [(self.pending.needed, self.pending.four_eyes)] if self.pending is not None else []
        return max((needed for needed, _ in going), default=0), any(four_eyes for _, four_eyes in going)

    def for_region(self, region: str, renders: Callable[[GlobalRevision], bool] = lambda _: True) -> Published:
        """The assignment as published to a region.

        Args:
            renders: whether the region can render a revision.
        """
        going = self.rollout is not None and self.rollout.state in GOING
        stable = self.stable
        if stable is not None and self.rollout is not None and self.rollout.candidate != stable:
            # A region that cannot render it never had it. What the region had before is in `earlier`.
            stable = stable if renders(stable) else None
        return Published(
            name=self.name,
            stable=stable.for_region(region) if stable else None,
            rollout=self.rollout.for_region(region) if going and self.rollout is not None else None,
            layers=[layer.for_region(region) for layer in self.layers],
            retry=self.retry,
            earlier=[revision.for_region(region) for revision in self.earlier],
        )

    def concerns(self, region: str) -> bool:
        """Whether agents of a region can match. If not, the region need not know the assignment."""
        return any(revision.selector.labels.get("region") in (None, region) for revision in self.in_force)

    def after(self, rollout: Rollout) -> AssignmentState:
        """Return the assignment after a step of one of its rollouts. Only this updates the revisions."""
        if self.pending is not None and self.pending.name == rollout.name:
            if rollout.state is RolloutState.PENDING_APPROVAL:
                return dataclasses.replace(self, pending=rollout)
            without_pending = dataclasses.replace(self, pending=None)
            return (
                without_pending._started(rollout)
                if rollout.state not in (RolloutState.REJECTED, RolloutState.ABORTED)
                else without_pending
            )
        if rollout.state is RolloutState.COMPLETED:
            return self._completed(rollout)
        if rollout.state in GOING:
            return dataclasses.replace(self, rollout=rollout)
        return dataclasses.replace(self, rollout=rollout, layers=())

    def _completed(self, rollout: Rollout) -> AssignmentState:
        done = dataclasses.replace(self, stable=rollout.candidate, rollout=rollout, layers=())
        if rollout.candidate == self.stable:
            return done
        good = [self.stable] if self.stable is not None and not self.flawed and not self.observe_only else []
        earlier = [revision for revision in (*good, *self.earlier) if revision != rollout.candidate]
        counts = rollout.passed[-1].counts if rollout.passed else {}
        flawed = bool(counts.get("failed")) and not counts.get("applied")
        return dataclasses.replace(done, earlier=tuple(earlier[:_MAX_EARLIER]), flawed=flawed)

    def _started(self, rollout: Rollout) -> AssignmentState:
        """Return the assignment after a rollout starts.

        Agents of the superseded rollout keep its candidate until the new one reaches them, unless it failed. A revision
        that was only observed is on no agent, so it does not become stable.
        """
        layers = self.layers
        if self.rollout is not None and self.rollout.state in GOING and not self.rollout.failed:
            layers = (self.rollout, *layers)[:_MAX_LAYERS]
        observe_only = rollout.candidate.observe_only
        return dataclasses.replace(
            self, layers=layers, observe_only=observe_only, stable=None if self.observe_only else self.stable
        ).after(rollout)

    def plain(self) -> dict[str, Any]:
        """Plain values for the database."""
        return {
            "observe_only": self.observe_only,
            "number": self.number,
            "retry": self.retry,
            "stable": self.stable.plain() if self.stable else None,
            "declared": self.declared.plain() if self.declared else None,
            "rollout": self.rollout.name if self.rollout else None,
            "pending": self.pending.name if self.pending else None,
            "layers": [layer.name for layer in self.layers],
            "earlier": [revision.plain() for revision in self.earlier],
            "flawed": self.flawed,
        }

    @classmethod
    def from_plain(
        cls, name: str, kind: str, value: Mapping[str, Any], rollouts: Mapping[str, Rollout]
    ) -> AssignmentState:
        """The inverse of `plain`.

        Args:
            rollouts: all stored rollouts, by name.
        """
        return cls(
            name=name,
            kind=kind,
            observe_only=value["observe_only"],
            number=value["number"],
            retry=value["retry"],
            stable=revision_from_plain(value["stable"]),
            declared=revision_from_plain(value["declared"]),
            rollout=rollouts.get(value["rollout"]),
            pending=rollouts.get(value["pending"]),
            layers=tuple(rollouts[layer] for layer in value["layers"]),
            earlier=tuple(filter(None, map(revision_from_plain, value.get("earlier", ())))),
            flawed=value.get("flawed", False),
        )

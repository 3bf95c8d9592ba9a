"""Assignments between their revisions: which is stable, which is on its way, and what follows of a rollout's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.control.rollouts.revision import GlobalRevision, revision_from_plain
from relay.control.rollouts.rollout import GOING, Rollout, RolloutState
from relay.policy.published import Published

_MOST_LAYERS = 8
"""Of rollouts that superseded each other; agents of older ones go to the stable revision."""
_MOST_EARLIER = 3
"""Of revisions that were stable before, for agents that cannot apply what came after."""


@dataclass(frozen=True, slots=True)
class AssignmentState:
    """An assignment between its revisions."""

    name: str
    kind: str
    observe_only: bool = False
    """What is stable is only compared with what agents run."""
    number: int = 0
    """Counts its rollouts."""
    retry: int = 0
    """Failures of an earlier retry generation are forgiven."""
    stable: GlobalRevision | None = None
    declared: GlobalRevision | None = None
    """What its document asks for, whatever has become of that."""
    rollout: Rollout | None = None
    """The one that is going on, or the last that went out."""
    pending: Rollout | None = None
    """The one that waits for approval."""
    layers: tuple[Rollout, ...] = ()
    """Superseded ones, newest first, whose agents keep their candidates until their turn comes."""
    earlier: tuple[GlobalRevision, ...] = ()
    """What was stable before, the newest first: for agents that cannot apply what came after."""
    flawed: bool = False
    """No agent could apply what is stable: it is nothing to fall back to."""

    @property
    def in_force(self) -> list[GlobalRevision]:
        """All that agents have, or have to be taken off."""
        if self.observe_only:
            return []
        out = self.rollout is not None and self.rollout.state in GOING | {RolloutState.ROLLING_BACK}
        going = [self.rollout.candidate] if out and self.rollout is not None else []
        found = [self.stable, *going, *(layer.candidate for layer in self.layers)]
        return [revision for revision in found if revision is not None]

    @property
    def revisions(self) -> list[GlobalRevision]:
        """All that may be at agents, or may come to them."""
        waiting = [self.stable, self.declared, self.pending.candidate if self.pending is not None else None]
        return [*self.in_force, *(revision for revision in waiting if revision is not None)]

    @property
    def latest(self) -> str:
        """Name of its newest rollout that was not rejected; empty where there is none."""
        newest = self.pending or self.rollout
        return newest.name if newest is not None else ""

    @property
    def asked(self) -> tuple[int, bool]:
        """(approvals, four eyes) that a change needs whatever it says itself: what was asked for until now."""
        going = [self.rollout.asked] if self.rollout is not None else []
        going += [(self.pending.needed, self.pending.four_eyes)] if self.pending is not None else []
        return max((needed for needed, _ in going), default=0), any(four_eyes for _, four_eyes in going)

    def for_region(self, region: str, renders: Callable[[GlobalRevision], bool] = lambda _: True) -> Published:
        """As one region gets it.

        Args:
            renders: whether the region can make something of a revision.
        """
        going = self.rollout is not None and self.rollout.state in GOING
        stable = self.stable
        if stable is not None and self.rollout is not None and self.rollout.candidate != stable:
            # A region that cannot make it never had it: what it may have had before is among the earlier ones.
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
        """Whether agents of a region can match: it may name another region, and then this one need not know it."""
        return any(revision.selector.labels.get("region") in (None, region) for revision in self.in_force)

    def after(self, rollout: Rollout) -> AssignmentState:
        """With a rollout that has taken a step; what follows of it for the revisions is done here and nowhere else."""
        if self.pending is not None and self.pending.name == rollout.name:
            if rollout.state is RolloutState.PENDING_APPROVAL:
                return dataclasses.replace(self, pending=rollout)
            cleared = dataclasses.replace(self, pending=None)
            return (
                cleared._begun(rollout)
                if rollout.state not in (RolloutState.REJECTED, RolloutState.ABORTED)
                else cleared
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
        return dataclasses.replace(done, earlier=tuple(earlier[:_MOST_EARLIER]), flawed=flawed)

    def _begun(self, rollout: Rollout) -> AssignmentState:
        """A new rollout goes out; agents of the one that it supersedes keep what they have until their turn comes.

        Not of one that failed: there is nothing to be kept. What was only observed until now is at no agent.
        """
        layers = self.layers
        if self.rollout is not None and self.rollout.state in GOING and not self.rollout.failed:
            layers = (self.rollout, *layers)[:_MOST_LAYERS]
        observe_only = rollout.candidate.observe_only
        return dataclasses.replace(
            self, layers=layers, observe_only=observe_only, stable=None if self.observe_only else self.stable
        ).after(rollout)

    def plain(self) -> dict[str, Any]:
        """As plain values, to be stored."""
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
        """Undo `plain`.

        Args:
            rollouts: all that are stored, by name.
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

"""Begins rollouts: which strategy a change uses, which approvals it needs, and whether it completes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import GlobalConfig, GlobalPackages
from relay.control.rollouts.rollout import Rollout, RolloutState, Way, at_once
from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy.model import ConfigAssignment
from relay.policy.strategy import OnFailure, StrategySpec


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings for changes (`policies.config_update`, `policies.package_update`)."""

    approval_required: bool = False
    approvals_needed: int = 1
    four_eyes: bool = False
    rollback_on_error: bool = True
    strategy: StrategySpec = field(default_factory=at_once)
    """The strategy of assignments that name none."""
    at_once: bool = True
    """Whether `strategy` just means everybody at once."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which changes begin."""

    rules: Mapping[str, Rules]
    """Kind of assignment → its settings."""
    targets: Callable[[Rollout, State], plan.Targets]
    """(rollout, state) → all known agents for which the rollout changes something."""

    def strategy_for(
        self, catalog: Catalog, before: Catalog, state: AssignmentState, assignment: AnyAssignment
    ) -> tuple[StrategySpec, bool, Way]:
        """(strategy, whether it means everybody at once, where it comes from) for a change.

        An assignment that drops its strategy keeps it until a change has completed.

        Args:
            before: the catalog before the change.
        """
        rules = self.rules[assignment.kind]
        if observes(assignment):
            return rules.strategy, True, Way.SETTINGS
        if (named := assignment.spec.strategy) is not None:
            return catalog.strategies[named].spec, False, Way.NAMED
        old = before.of(assignment.kind).get(assignment.key)
        given_up = old.spec.strategy if isinstance(old, AnyAssignment) else None
        if given_up is not None and given_up in catalog.strategies:
            return catalog.strategies[given_up].spec, False, Way.KEPT
        last = state.pending or state.rollout
        if last is not None and last.keeps_its_way:
            return last.strategy, False, Way.KEPT
        return rules.strategy, rules.at_once, Way.SETTINGS

    def required_approvals(self, assignment: AnyAssignment) -> tuple[int, bool]:
        """(approvals that the documents require, whether the author's own does not count)."""
        rules, own = self.rules[assignment.kind], assignment.spec.approval
        required = rules.approval_required if own is None or own.required is None else own.required
        needed = (own.needed if own is not None and own.needed else rules.approvals_needed) if required else 0
        return needed, rules.four_eyes if own is None or own.four_eyes is None else own.four_eyes


def observes(assignment: AnyAssignment) -> bool:
    """Whether an assignment is only compared with what agents run, never offered."""
    return isinstance(assignment, ConfigAssignment) and assignment.spec.observe_only


def begin(
    draft: Draft,
    state: AssignmentState,
    assignment: AnyAssignment,
    way: tuple[StrategySpec, bool, Way],
    authors: Sequence[str],
    terms: Terms,
    now_ms: int,
) -> Rollout:
    """Begin the rollout to what `state` declares, superseding a pending one. Returns it in its new state."""
    assert state.declared is not None
    strategy, is_at_once, source = way
    asked, previous = terms.required_approvals(assignment), state.asked
    # Nobody can drop the approval requirement without the approvals that it demands.
    needed, four_eyes = max(asked[0], previous[0]), asked[1] or previous[1]
    rollback = terms.rules[assignment.kind].rollback_on_error
    rollout = Rollout(
        name=f"{state.name}-{state.number + 1}",
        assignment=state.name,
        candidate=state.declared,
        stable=state.stable,
        strategy=strategy,
        digest=sha256(canonical_json([state.declared.plain(), strategy.model_dump(), needed, four_eyes])).hex(),
        created_by=authors[0],
        created_ms=now_ms,
        state=RolloutState.PENDING_APPROVAL,
        on_failure=strategy.failure_policy.action or (OnFailure.ROLLBACK if rollback else OnFailure.PAUSE),
        needed=needed,
        four_eyes=four_eyes,
        asked=asked,
        authors=tuple(dict.fromkeys(authors)),
        at_once=is_at_once,
        way=source,
    )
    if state.pending is not None:
        draft.add_step(plan.supersede(state.pending, rollout.name, now_ms), state.pending)
    state = dataclasses.replace(state, number=state.number + 1, pending=rollout)
    return begin_if_approved(draft, state, rollout, terms, now_ms)


def begin_if_approved(draft: Draft, state: AssignmentState, rollout: Rollout, terms: Terms, now_ms: int) -> Rollout:
    """Start a pending rollout if it has the approvals that it needs. Returns it in its new state."""
    # The stable revision may have changed meanwhile. A revision that was only observed is at no agent.
    rollout = dataclasses.replace(rollout, stable=None if state.observe_only else state.stable)
    state = draft.assignments[state.name] = dataclasses.replace(state, pending=rollout)
    if not plan.approved(rollout):
        draft.add_step(rollout)
        return rollout
    begun = _begin_approved(draft, rollout, terms, now_ms)
    old, after = state.rollout, state.after(begun)
    if old is not None and old.active:
        ended = plan.supersede(old, rollout.name, now_ms)
        draft.add_step(ended, old)
        after = dataclasses.replace(after, layers=tuple(ended if r.name == old.name else r for r in after.layers))
    draft.assignments[state.name] = after
    draft.add_step(begun)
    return begun


def _begin_approved(draft: Draft, rollout: Rollout, terms: Terms, now_ms: int) -> Rollout:
    if rollout.candidate == rollout.stable:
        return plan.complete_at_once(rollout, "back to the stable revision", now_ms)
    if rollout.candidate.observe_only:
        return plan.complete_at_once(rollout, "it is only observed", now_ms)
    targets = terms.targets(rollout, draft.state)
    if rollout.at_once and not targets:
        return plan.complete_at_once(rollout, "it matched no known agent", now_ms)
    if not targets and _same_content(rollout):
        return plan.complete_at_once(rollout, "it changes nothing for any known agent", now_ms)
    begun = plan.begin(rollout, targets, now_ms)
    if isinstance(rollout.candidate, GlobalPackages) and rollout.candidate.prefetch:
        # No agent gets its turn before the files have arrived: see `engine/loop`.
        begun = dataclasses.replace(begun, thresholds={})
    return begun


def _same_content(rollout: Rollout) -> bool:
    """Whether a rollout changes at most the selector and the priority."""
    candidate, stable = rollout.candidate, rollout.stable
    if isinstance(candidate, GlobalConfig) and isinstance(stable, GlobalConfig):
        return dataclasses.replace(candidate, selector=stable.selector, priority=stable.priority) == stable
    if isinstance(candidate, GlobalPackages) and isinstance(stable, GlobalPackages):
        return candidate.packages == stable.packages
    return False


def forgive(draft: Draft, name: str) -> int:
    """Raise the retry generation of an assignment. Returns the new one.

    It is higher than that of any assignment: content that moves to another assignment takes its failures along.
    """
    generations = [
        *(s.retry for s in draft.assignments.values()),
        *(retry for _, retry in draft.deleted_assignments.values()),
    ]
    raised = dataclasses.replace(draft.assignments[name], retry=max(generations) + 1)
    draft.assignments[name] = raised
    return raised.retry


def again(draft: Draft, name: str, authors: Sequence[str], terms: Terms, now_ms: int) -> Rollout:
    """Begin another rollout to what an assignment declares, by the current settings."""
    assignment = next(a for a in draft.catalog.all_assignments() if a.key == name)
    state = draft.assignments[name]
    way = terms.strategy_for(draft.catalog, draft.before.catalog, state, assignment)
    return begin(draft, state, assignment, way, authors, terms, now_ms)

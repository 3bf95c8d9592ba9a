"""Derives revisions and rollouts from documents.

A change to any input of an assignment (its template, its values, its selector, a region's variables) creates a new revision
and a rollout to it. Without a strategy the rollout has one stage with all agents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from relay.control.ledger.begin import Terms, begin
from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.control.ledger.draft import Draft
from relay.control.ledger.state import State
from relay.control.rollouts import plan
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.revision import GlobalConfig, GlobalPackages, GlobalRevision
from relay.control.rollouts.rollout import Rollout, Way
from relay.errors import Problem, Refused
from relay.ids import sha256
from relay.policy.packages import PackageAssignment
from relay.policy.resources import assignment_resource, package_resource, split, template_resource, variables_resource
from relay.policy.strategy import StrategySpec
from relay.policy.template import RENDERER


def revise(before: State, catalog: Catalog, terms: Terms, *, by: str, now_ms: int) -> Draft:
    """The state that results from a new catalog.

    Args:
        before: the current state.
        by: who changed the documents: the author of the rollouts that begin.
    """
    variables = dict(variables_resource(v) for v in catalog.variables.values())
    packages = dict(package_resource(v.package) for v in catalog.packages.values())
    draft = Draft(before, catalog=catalog, contents={**variables, **packages})
    pins = {pin.rpartition("@")[0]: pin for _, pin in map(split, variables)}
    assignments = {a.key: a for a in catalog.all_assignments()}
    for name in before.assignments.keys() - assignments.keys():
        _delete(draft, name, now_ms)
    for assignment in assignments.values():
        _follow(draft, assignment, _revision(catalog, pins, assignment), terms, by, now_ms)
    _end_yanked(draft, now_ms)
    drop_unavailable_fallbacks(draft)
    return draft


def drop_unavailable_fallbacks(draft: Draft) -> None:
    """Forget fallback revisions whose template or packages were deleted: a fallback does not block deletion."""
    for name, state in draft.assignments.items():
        available = tuple(r for r in state.earlier if _is_available(r, draft.catalog))
        if available != state.earlier:
            draft.assignments[name] = dataclasses.replace(state, earlier=available)


def _delete(draft: Draft, name: str, now_ms: int) -> None:
    state = draft.assignments.pop(name)
    draft.deleted_assignments[name] = (state.number, state.retry)
    for rollout in (state.rollout, state.pending):
        if rollout is not None and rollout.active:
            draft.add_step(plan.abort(rollout, "its assignment was deleted", now_ms), rollout)


def _follow(
    draft: Draft, assignment: AnyAssignment, revision: GlobalRevision, terms: Terms, by: str, now_ms: int
) -> None:
    """Begin a rollout if an assignment declares another revision than before, or its pending rollout was edited."""
    name = assignment.key
    number, retry = draft.deleted_assignments.pop(name, (0, 0))
    state = draft.assignments.get(name) or AssignmentState(name, assignment.kind, number=number, retry=retry)
    if state.declared is not None and revision.as_rendered_by(state.declared) == state.declared:
        revision = state.declared  # a new renderer alone is no change
    draft.assignments[name] = state
    way = terms.strategy_for(draft.catalog, draft.before.catalog, state, assignment)
    was_edited = state.pending is not None and not _as_pending(state.pending, way, terms.required_approvals(assignment))
    if state.declared != revision or was_edited:
        authors = (by, *(state.pending.authors if state.pending is not None else ()))
        begin(draft, dataclasses.replace(state, declared=revision), assignment, way, authors, terms, now_ms)


def _as_pending(pending: Rollout, way: tuple[StrategySpec, bool, Way], asked: tuple[int, bool]) -> bool:
    """Whether a pending rollout still has the strategy and approvals that the documents require."""
    return pending.strategy == way[0] and pending.asked == asked


def _revision(catalog: Catalog, pins: Mapping[str, str], assignment: AnyAssignment) -> GlobalRevision:
    """The revision that an assignment's document declares.

    Args:
        pins: region → NAME@DIGEST of its current variables.
    """
    if isinstance(assignment, PackageAssignment):
        package_pins = (catalog.packages[p.key].package.pin for p in assignment.spec.packages)
        return GlobalPackages(
            tuple(sorted(package_pins)),
            assignment.spec.target_selector,
            assignment.spec.priority,
            assignment.spec.prefetch,
        )
    spec = assignment.spec
    template = catalog.templates[spec.template.key]
    declared = {v.name for v in template.spec.variables}
    # Do not pin variables that the template does not declare: they cannot change what it renders.
    pinned = {region: pin for region, pin in pins.items() if declared & catalog.variables[region].spec.values.keys()}
    return GlobalConfig(
        template.key,
        sha256(template_resource(template)[1]).hex(),
        dict(spec.values),
        pinned,
        RENDERER,
        spec.target_selector,
        spec.priority,
        spec.slot,
        spec.observe_only,
    )


def _end_yanked(draft: Draft, now_ms: int) -> None:
    """End rollouts to yanked packages. A yanked stable revision stays in force, but is offered to nobody."""
    yanked = draft.catalog.yanked
    for state in list(draft.assignments.values()):
        for rollout in (state.rollout, state.pending):
            withdrawn = sorted(rollout.candidate.versions & yanked) if rollout is not None and rollout.active else []
            if rollout is not None and withdrawn:
                ended = plan.abort(rollout, f"package {', '.join(withdrawn)} was yanked", now_ms)
                draft.assignments[state.name] = draft.assignments[state.name].after(ended)
                draft.add_step(ended, rollout)


def _is_available(revision: GlobalRevision, catalog: Catalog) -> bool:
    """Whether everything that a revision uses still exists."""
    if isinstance(revision, GlobalConfig):
        return revision.template in catalog.templates
    return revision.versions <= catalog.packages.keys()


def check_publishable(draft: Draft) -> None:
    """Check that every changed assignment can be published, before it is stored.

    Raises:
        Refused: an assignment cannot be published.
    """
    problems = []
    for name, state in draft.assignments.items():
        if state is not draft.before.assignments.get(name):
            try:
                assignment_resource(state.kind, state.for_region(""))
            except ValueError as error:
                problems.append(Problem(f"{state.kind}/{name}", 0, "", str(error).replace("\n", "; ")[:300]))
    if problems:
        raise Refused(problems)

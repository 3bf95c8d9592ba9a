"""What follows from documents.

A change of any input of an assignment (its template, its values, its selector, a region's variables) makes a new revision,
and a rollout to it. Without a strategy the rollout has one stage, of everybody.
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
    """The state that follows from documents.

    Args:
        before: the state until now, with the documents until now.
        by: who changes them: the author of the rollouts that begin.
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
    drop_lost(draft)
    return draft


def drop_lost(draft: Draft) -> None:
    """Forget what agents could only fall back to, and cannot any more: nobody is kept from deleting it."""
    for name, state in draft.assignments.items():
        kept = tuple(r for r in state.earlier if _is_whole(r, draft.catalog))
        if kept != state.earlier:
            draft.assignments[name] = dataclasses.replace(state, earlier=kept)


def _delete(draft: Draft, name: str, now_ms: int) -> None:
    state = draft.assignments.pop(name)
    draft.gone[name] = (state.number, state.retry)
    for rollout in (state.rollout, state.pending):
        if rollout is not None and rollout.active:
            draft.take(plan.abort(rollout, "its assignment was deleted", now_ms), rollout)


def _follow(
    draft: Draft, assignment: AnyAssignment, revision: GlobalRevision, terms: Terms, by: str, now_ms: int
) -> None:
    """An assignment asks for a revision: where that is another one than until now, its rollout begins."""
    name = assignment.key
    number, retry = draft.gone.pop(name, (0, 0))
    state = draft.assignments.get(name) or AssignmentState(name, assignment.kind, number=number, retry=retry)
    if state.declared is not None and revision.as_rendered_by(state.declared) == state.declared:
        revision = state.declared  # a new renderer comes in where something changes anyway
    draft.assignments[name] = state
    way = terms.way(draft.catalog, draft.before.catalog, state, assignment)
    edited = state.pending is not None and not _as_pending(state.pending, way, terms.asked(assignment))
    if state.declared != revision or edited:
        authors = (by, *(state.pending.authors if state.pending is not None else ()))
        begin(draft, dataclasses.replace(state, declared=revision), assignment, way, authors, terms, now_ms)


def _as_pending(pending: Rollout, way: tuple[StrategySpec, bool, Way], asked: tuple[int, bool]) -> bool:
    """Whether what waits for approval is still what the documents say."""
    return pending.strategy == way[0] and pending.asked == asked


def _revision(catalog: Catalog, pins: Mapping[str, str], assignment: AnyAssignment) -> GlobalRevision:
    """What an assignment's document asks for.

    Args:
        pins: region → NAME@DIGEST of its variables now.
    """
    if isinstance(assignment, PackageAssignment):
        wanted = (catalog.packages[p.key].package.pin for p in assignment.spec.packages)
        return GlobalPackages(
            tuple(sorted(wanted)),
            assignment.spec.target_selector,
            assignment.spec.priority,
            assignment.spec.prefetch,
        )
    spec = assignment.spec
    template = catalog.templates[spec.template.key]
    declared = {v.name for v in template.spec.variables}
    # Variables that the template does not declare cannot change what it renders: they are not pinned.
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
    """Rollouts to something that was yanked are over; what is stable stays in force, and is offered to nobody."""
    yanked = draft.catalog.yanked
    for state in list(draft.assignments.values()):
        for rollout in (state.rollout, state.pending):
            gone = sorted(rollout.candidate.versions & yanked) if rollout is not None and rollout.active else []
            if rollout is not None and gone:
                ended = plan.abort(rollout, f"package {', '.join(gone)} was yanked", now_ms)
                draft.assignments[state.name] = draft.assignments[state.name].after(ended)
                draft.take(ended, rollout)


def _is_whole(revision: GlobalRevision, catalog: Catalog) -> bool:
    """Whether all that a revision is of is still there."""
    if isinstance(revision, GlobalConfig):
        return revision.template in catalog.templates
    return revision.versions <= catalog.packages.keys()


def expect_publishable(draft: Draft) -> None:
    """What no region could be told of must not be stored.

    Raises:
        Refused: an assignment is of that sort.
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

"""Assignments between their revisions: which is stable, which is on its way, and the resources that these need.

A change of any input of an assignment (its template, its values, its selector, a region's variables) makes a new
revision, and a rollout to it. Without a strategy the rollout is complete as soon as it may begin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.control.rollouts import plan
from relay.control.rollouts.assignment import Advance, AssignmentState, Inputs, packages_of
from relay.control.rollouts.contents import renders
from relay.control.rollouts.model import (
    GOING,
    GlobalConfig,
    GlobalPackages,
    GlobalRevision,
    Rollout,
    State,
    Way,
    at_once,
)
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.control.storage.sealed import read_all, read_truth
from relay.documents import canonical_json
from relay.errors import StoreError
from relay.ids import sha256
from relay.policy.model import ConfigAssignment, ConfigTemplate
from relay.policy.packages import PublishedPackage
from relay.policy.snapshot import (
    PackageRevision,
    assignment_resource,
    package_resource,
    template_resource,
    variables_resource,
)
from relay.policy.strategy import StrategySpec


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say of changes (`policies.config_update`, `policies.package_update`)."""

    approval_required: bool = False
    approvals_needed: int = 1
    four_eyes: bool = False
    rollback_on_error: bool = True
    strategy: StrategySpec = field(default_factory=at_once)
    """Of assignments that name none."""
    at_once: bool = True
    """Whether that is none at all."""


Targets = Callable[[Rollout, Advance], list[tuple[str, str]]]
"""(region, agent id) of all agents for which a rollout changes something, where the advance is in force."""


class Revisions:
    """The state of all assignments, and the contents that their revisions pin."""

    def __init__(self, database: Database, *, rules: Mapping[str, Rules], targets: Targets) -> None:
        self._database = database
        self._rules = rules
        self._targets = targets
        self.changing = asyncio.Lock()
        """Held from reading the states to their replacement: of two changes at once none may lose the other's."""
        self.states: dict[str, AssignmentState] = {}
        self._gone: dict[str, tuple[int, int]] = {}
        self._templates: dict[str, ConfigTemplate] = {}
        self._contents: dict[str, bytes] = {}
        """Resource name → payload of every pinned RegionVariables and Package, old ones too."""

    async def load(self, catalog: Catalog) -> None:
        """Read where every assignment is; the documents are read already."""
        async with self._database.read() as connection:
            rows = await read_truth(connection, schema.assignments)
            contents = await read_truth(connection, schema.contents)
            bodies, damaged = await read_all(connection, schema.rollouts)
        self._templates = dict(catalog.templates)
        self._contents = {row.name: row.payload for row in contents}
        rollouts = {row.name: Rollout.from_plain(json.loads(row.body)) for row in bodies}
        kinds = {a.key: a.kind for a in catalog.all_assignments()}
        for row in rows:
            held = json.loads(row.body)
            lost = {held.get("rollout"), held.get("pending"), *held.get("layers", ())} & set(damaged)
            if lost:
                raise StoreError(f"table rollouts: {', '.join(map(str, lost))} is damaged: restore a backup")
            if row.name not in kinds:
                self._gone[row.name] = (held["number"], held["retry"])
                continue
            self.states[row.name] = AssignmentState.from_plain(row.name, kinds[row.name], held, rollouts)
        # A digest says that a value is as it was written, and not that it stands under its own name.
        if misplaced := [
            *(f"assignments: {name}" for name in kinds.keys() - self.states.keys()),
            *(f"rollouts: {name}" for name, rollout in rollouts.items() if rollout.name != name),
            *(f"contents: {row.name}" for row in contents if not _is_named_for(row.name, row.payload)),
        ]:
            raise StoreError(f"table {', '.join(sorted(misplaced)[:5])} is damaged: restore a backup")

    # ---- what follows from documents

    def advance(self, catalog: Catalog, *, actor: str, now_ms: int, before: Catalog | None = None) -> Advance:
        """Give the states that follow from documents; nothing changes yet.

        Args:
            before: the documents until now.
        """
        variables = dict(variables_resource(v) for v in catalog.variables.values())
        packages = dict(package_resource(p) for p in catalog.packages.values())
        inputs = Inputs(
            catalog, {name.partition("/")[2].rpartition("@")[0]: name.partition("/")[2] for name in variables}
        )
        contents = {**self._contents, **variables, **packages}
        advance = Advance(dict(self.states), dict(catalog.templates), contents, gone=dict(self._gone))
        assignments = {a.key: a for a in catalog.all_assignments()}
        for name in self.states.keys() - assignments.keys():
            state = advance.states.pop(name)
            advance.gone[name] = (state.number, state.retry)
            advance.rollouts += [
                plan.abort(r, "its assignment was deleted", now_ms)
                for r in (state.rollout, state.pending)
                if r and r.active
            ]
        for name, assignment in assignments.items():
            revision = inputs.revision(assignment)
            known = self.states[name].declared if name in self.states else None
            if known is not None and revision.as_rendered_by(known) == known:
                revision = known  # a new renderer comes in where something changes anyway
            number, retry = advance.gone.pop(name, (0, 0))
            state = self.states.get(name) or AssignmentState(name, assignment.kind, number=number, retry=retry)
            advance.states[name] = state
            way = self._way(catalog, before, state, assignment)
            edited = state.pending is not None and not self._as_pending(state.pending, assignment, way[0])
            if state.declared != revision or edited:
                authors = (actor, *(state.pending.authors if state.pending is not None else ()))
                state = dataclasses.replace(state, declared=revision)
                self._change(advance, state, assignment, way, authors, now_ms)
        self._end_yanked(advance, catalog, now_ms)
        for name, state in advance.states.items():
            # Nobody is kept from deleting what agents could only fall back to.
            kept = tuple(r for r in state.earlier if _is_whole(r, catalog))
            if kept != state.earlier:
                advance.states[name] = dataclasses.replace(state, earlier=kept)
        self._drop_unpinned(advance)
        return advance

    def _end_yanked(self, advance: Advance, catalog: Catalog, now_ms: int) -> None:
        """Rollouts to something that was yanked are over; what is stable stays in force, and is offered to nobody."""
        for state in list(advance.states.values()):
            for rollout in (state.rollout, state.pending):
                candidate = rollout.candidate if rollout is not None and rollout.active else None
                if rollout is None or not isinstance(candidate, GlobalPackages):
                    continue
                gone = sorted(candidate.versions & catalog.yanked)
                if gone:
                    ended = plan.abort(rollout, f"package {', '.join(gone)} was yanked", now_ms)
                    advance.states[state.name] = advance.states[state.name].after(ended)
                    advance.rollouts.append(ended)

    def strategy(self, catalog: Catalog, assignment: AnyAssignment) -> StrategySpec:
        """By which changes of an assignment go out."""
        named = "" if _observes(assignment) else assignment.spec.strategy
        return catalog.strategies[named].spec if named else self._rules[assignment.kind].strategy

    def _at_once(self, assignment: AnyAssignment) -> bool:
        """Whether changes go out without a strategy."""
        return _observes(assignment) or (not assignment.spec.strategy and self._rules[assignment.kind].at_once)

    def _way(
        self, catalog: Catalog, before: Catalog | None, state: AssignmentState, assignment: AnyAssignment
    ) -> tuple[StrategySpec, bool, Way]:
        """(strategy, whether that is none, who says so) by which a change goes out.

        One that gives up its strategy goes out by it, whatever is edited until one has.
        """
        strategy, at_once = self.strategy(catalog, assignment), self._at_once(assignment)
        if _observes(assignment) or assignment.spec.strategy:
            return strategy, at_once, Way.SETTINGS if _observes(assignment) else Way.NAMED
        old = before.of(assignment).get(assignment.key) if before is not None else None
        if old is not None and old.spec.strategy in catalog.strategies:
            return catalog.strategies[old.spec.strategy].spec, False, Way.KEPT
        last = state.pending or state.rollout
        if last is not None and (last.way is Way.NAMED or (last.way is Way.KEPT and last.state is not State.COMPLETED)):
            return last.strategy, False, Way.KEPT
        return strategy, at_once, Way.SETTINGS

    def _asked(self, assignment: AnyAssignment) -> tuple[int, bool]:
        """(approvals that a change needs by its own documents, whether its author's does not count)."""
        rules, own = self._rules[assignment.kind], assignment.spec.approval
        required = rules.approval_required if own is None or own.required is None else own.required
        needed = (own.needed if own is not None and own.needed else rules.approvals_needed) if required else 0
        return needed, rules.four_eyes if own is None or own.four_eyes is None else own.four_eyes

    def _as_pending(self, pending: Rollout, assignment: AnyAssignment, strategy: StrategySpec) -> bool:
        """Whether what waits for approval is still what the documents say."""
        return pending.strategy == strategy and pending.asked == self._asked(assignment)

    def _change(
        self,
        advance: Advance,
        state: AssignmentState,
        assignment: AnyAssignment,
        way: tuple[StrategySpec, bool, Way],
        authors: Sequence[str],
        now_ms: int,
    ) -> None:
        """Begin the rollout to what `state` declares, in the place of one that waits."""
        assert state.declared is not None
        strategy, at_once, who = way
        asked, before = self._asked(assignment), state.asked
        # Who may not change something alone may not change alone that they may not.
        needed, four_eyes = max(asked[0], before[0]), asked[1] or before[1]
        rollback = self._rules[assignment.kind].rollback_on_error
        rollout = Rollout(
            name=f"{state.name}-{state.number + 1}",
            assignment=state.name,
            candidate=state.declared,
            stable=state.stable,
            strategy=strategy,
            digest=sha256(canonical_json([state.declared.plain(), strategy.model_dump(), needed, four_eyes])).hex(),
            created_by=authors[0],
            created_ms=now_ms,
            state=State.PENDING_APPROVAL,
            on_failure=strategy.failure_policy.action or ("rollback" if rollback else "pause"),
            needed=needed,
            four_eyes=four_eyes,
            asked=asked,
            authors=tuple(dict.fromkeys(authors)),
            at_once=at_once,
            way=who,
        )
        if state.pending is not None:
            advance.rollouts.append(plan.supersede(state.pending, rollout.name, now_ms))
        state = dataclasses.replace(state, number=state.number + 1, pending=rollout)
        self.begin_if_approved(advance, state, rollout, now_ms)

    def begin_if_approved(self, advance: Advance, state: AssignmentState, rollout: Rollout, now_ms: int) -> None:
        """Put a rollout that waited into `advance`: going out, if it has the approvals that it needs."""
        # What is stable may have changed while it waited, and what is only observed is at no agent.
        rollout = dataclasses.replace(rollout, stable=None if state.observe_only else state.stable)
        state = advance.states[state.name] = dataclasses.replace(state, pending=rollout)
        if not plan.approved(rollout):
            advance.rollouts.append(rollout)
            return
        if rollout.candidate == rollout.stable:
            begun = plan.complete_at_once(rollout, "back to the stable revision", now_ms)
        elif rollout.candidate.observe_only:
            begun = plan.complete_at_once(rollout, "it is only observed", now_ms)
        else:
            targets = self._targets(rollout, advance)
            if rollout.at_once and not targets:
                begun = plan.complete_at_once(rollout, "no agent was known that it is for", now_ms)
            elif targets or not _same_content(rollout):
                begun = plan.begin(rollout, targets, now_ms)
                if isinstance(rollout.candidate, GlobalPackages) and rollout.candidate.prefetch:
                    # Nobody's turn comes before the files are there: see `Rollouts`.
                    begun = dataclasses.replace(begun, thresholds={})
            else:
                begun = plan.complete_at_once(rollout, "it changes nothing for any agent that is known", now_ms)
        old, after = state.rollout, state.after(begun)
        if old is not None and old.active:
            ended = plan.supersede(old, rollout.name, now_ms)
            advance.rollouts.append(ended)
            after = dataclasses.replace(after, layers=tuple(ended if r.name == old.name else r for r in after.layers))
        advance.states[state.name] = after
        advance.rollouts.append(begun)

    def forgive(self, advance: Advance, name: str) -> None:
        """Raise the retry generation of an assignment in `advance`.

        Every assignment counts on from the highest of all: content that moves to another one brings its failures along.
        """
        known = [*(s.retry for s in advance.states.values()), *(retry for _, retry in advance.gone.values())]
        advance.states[name] = dataclasses.replace(advance.states[name], retry=max(known) + 1)

    def again(self, advance: Advance, catalog: Catalog, name: str, authors: Sequence[str], now_ms: int) -> None:
        """Put into `advance` a new rollout to what an assignment asks for and did not get, by the rules of today."""
        assignment = next(a for a in catalog.all_assignments() if a.key == name)
        state = advance.states[name]
        self._change(advance, state, assignment, self._way(catalog, None, state, assignment), authors, now_ms)

    def step(self, rollout: Rollout) -> Advance:
        """What follows from a rollout that took a step."""
        states = dict(self.states)
        states[rollout.assignment] = states[rollout.assignment].after(rollout)
        advance = Advance(states, self._templates, dict(self._contents), [rollout], dict(self._gone))
        self._drop_unpinned(advance)
        return advance

    def same(self) -> Advance:
        """Nothing; to be filled by the caller."""
        return Advance(dict(self.states), self._templates, dict(self._contents), gone=dict(self._gone))

    @staticmethod
    def _drop_unpinned(advance: Advance) -> None:
        needed = {
            pin
            for state in advance.states.values()
            for revision in (*state.revisions, *state.earlier)
            for pin in revision.pins
        }
        advance.contents = {name: payload for name, payload in advance.contents.items() if name in needed}

    def unpublishable(self, advance: Advance) -> list[tuple[str, str]]:
        """(KIND/NAME, reason) of assignments of which no region could be told: they must not be stored."""
        found = []
        for state in advance.states.values():
            if state != self.states.get(state.name):
                try:
                    assignment_resource(state.kind, state.for_region(""))
                except ValueError as error:
                    found.append((f"{state.kind}/{state.name}", str(error).replace("\n", "; ")[:300]))
        return found

    # ---- storing

    async def store(self, connection: AsyncConnection, advance: Advance) -> None:
        """Write it, in the caller's transaction."""
        rows = [
            {"name": s.name, "body": canonical_json(s.plain()).decode()}
            for s in advance.states.values()
            if s != self.states.get(s.name)
        ]
        rows += [
            {"name": name, "body": canonical_json({"number": number, "retry": retry}).decode()}
            for name, (number, retry) in advance.gone.items()
            if name not in self._gone
        ]
        await replace(connection, schema.assignments, rows)
        latest = {r.name: r for r in advance.rollouts}
        await replace(
            connection,
            schema.rollouts,
            [
                {
                    "name": r.name,
                    "assignment": r.assignment,
                    "created_ms": r.created_ms,
                    "body": canonical_json(r.plain()).decode(),
                }
                for r in latest.values()
            ],
        )
        fresh = [
            {"name": name, "payload": payload}
            for name, payload in advance.contents.items()
            if name not in self._contents
        ]
        await replace(connection, schema.contents, fresh)
        unpinned = [{"name": name} for name in self._contents.keys() - advance.contents.keys()]
        if unpinned:
            await remove(connection, schema.contents, unpinned)

    def put_in_force(self, advance: Advance) -> None:
        """What was stored is what counts now."""
        self.states, self._templates, self._contents = advance.states, advance.templates, advance.contents
        self._gone = advance.gone

    # ---- for others

    def users_of_template(self, key: str) -> set[str]:
        """Assignments of which a revision pins this NAME@VERSION."""
        return {s.name for s in self.states.values() if any(_uses(r, key) for r in s.revisions)}

    def users_of_package(self, key: str) -> set[str]:
        """Assignments of which a revision pins this NAME@VERSION."""
        return {
            s.name
            for s in self.states.values()
            if any(pin.startswith(f"Package/{key}@") for r in s.revisions for pin in r.pins)
        }

    def pinned(self, region: str) -> list[PublishedPackage]:
        """Every version that a region is told of."""
        advance = self.same()
        return [
            package
            for state in self.states.values()
            if state.concerns(region)
            for revision in (*state.in_force, *state.earlier)
            if isinstance(revision, GlobalPackages)
            for package in packages_of(advance, revision)
        ]

    def ahead(self, region: str) -> list[PublishedPackage]:
        """Versions that a region is to fetch before their rollout begins there."""
        advance = self.same()
        going = (
            s.rollout for s in self.states.values() if s.rollout and s.rollout.state in GOING and s.concerns(region)
        )
        return [
            package
            for rollout in going
            if isinstance(rollout.candidate, GlobalPackages) and rollout.candidate.prefetch
            for package in packages_of(advance, rollout.candidate)
        ]

    def resources(self, region: str) -> dict[str, bytes]:
        """Everything that a region is to hold: name → payload."""
        return self._resources(self.same(), region)

    def aimed(self, advance: Advance, region: str) -> dict[str, bytes]:
        """What a region would hold if every change that is declared were complete."""
        states = {
            name: AssignmentState(
                name,
                state.kind,
                state.declared is not None and state.declared.observe_only,
                stable=state.declared,
                retry=state.retry,
            )
            for name, state in advance.states.items()
        }
        return self._resources(Advance(states, advance.templates, advance.contents), region)

    def _resources(self, advance: Advance, region: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for state in advance.states.values():
            if not state.concerns(region):
                continue
            published = state.for_region(region, lambda revision: renders(advance, revision, region))
            name, payload = assignment_resource(state.kind, published)
            found[name] = payload
            for revision in published.revisions:
                if isinstance(revision, PackageRevision):
                    found.update((f"Package/{pin}", advance.contents[f"Package/{pin}"]) for pin in revision.packages)
                else:
                    name, payload = template_resource(advance.templates[revision.template])
                    found[name] = payload
                    if revision.variables:
                        variables = f"RegionVariables/{revision.variables}"
                        found[variables] = advance.contents[variables]
        return found


def _uses(revision: GlobalRevision, template: str) -> bool:
    return isinstance(revision, GlobalConfig) and revision.template == template


def _observes(assignment: AnyAssignment) -> bool:
    return isinstance(assignment, ConfigAssignment) and assignment.spec.observe_only


def _is_whole(revision: GlobalRevision, catalog: Catalog) -> bool:
    """Whether all that a revision is of is still there."""
    if isinstance(revision, GlobalConfig):
        return revision.template in catalog.templates
    return revision.versions <= catalog.packages.keys()


def _same_content(rollout: Rollout) -> bool:
    """Whether a rollout changes at most who gets something, and with what priority."""
    candidate, stable = rollout.candidate, rollout.stable
    if isinstance(candidate, GlobalConfig) and isinstance(stable, GlobalConfig):
        return dataclasses.replace(candidate, selector=stable.selector, priority=stable.priority) == stable
    if isinstance(candidate, GlobalPackages) and isinstance(stable, GlobalPackages):
        return candidate.packages == stable.packages
    return False


def _is_named_for(name: str, payload: bytes) -> bool:
    """Whether a content is the one of its name; the name of what is of a region ends with a digest of it."""
    kind, _, rest = name.partition("/")
    return kind != "RegionVariables" or sha256(payload).hex().startswith(rest.rpartition("@")[2])

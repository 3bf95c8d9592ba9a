"""Assignments between their revisions: which is stable, which is on its way, and the resources that these need.

A change of any input of an assignment (its template, its values, its selector, a region's variables) makes a new
revision, and a rollout to it. Without a strategy the rollout is complete as soon as it may begin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.rollouts import plan
from relay.control.rollouts.model import AT_ONCE, GOING, GlobalRevision, Rollout, State
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy.model import AssignmentSpec, ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.snapshot import Published, assignment_resource, template_resource, variables_resource
from relay.policy.strategy import RolloutStrategy, StrategySpec
from relay.policy.template import RENDERER


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say of changes (`policies.config_update`)."""

    approval_required: bool = False
    approvals_needed: int = 1
    four_eyes: bool = False
    rollback_on_error: bool = True


_MOST_LAYERS = 8
"""Of rollouts that superseded each other; agents of older ones go to the stable revision."""


@dataclass(frozen=True, slots=True)
class AssignmentState:
    """An assignment between its revisions."""

    name: str
    slot: str
    priority: int
    observe_only: bool = False
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

    @property
    def in_force(self) -> list[GlobalRevision]:
        """All that agents have, or have to be taken off."""
        out = self.rollout is not None and self.rollout.state in GOING | {State.ROLLING_BACK}
        going = [self.rollout.candidate] if out and self.rollout is not None else []
        found = [self.stable, *going, *(layer.candidate for layer in self.layers)]
        return [revision for revision in found if revision is not None]

    @property
    def revisions(self) -> list[GlobalRevision]:
        """All that may be at agents, or may come to them."""
        waiting = [self.declared, self.pending.candidate if self.pending is not None else None]
        return [*self.in_force, *(revision for revision in waiting if revision is not None)]

    def for_region(self, region: str) -> Published:
        """As one region gets it."""
        going = self.rollout is not None and self.rollout.state in GOING
        return Published(
            name=self.name,
            slot=self.slot,
            priority=self.priority,
            stable=self.stable.for_region(region) if self.stable else None,
            rollout=self.rollout.for_region(region) if going and self.rollout is not None else None,
            layers=[layer.for_region(region) for layer in self.layers],
            retry=self.retry,
        )

    def concerns(self, region: str) -> bool:
        """Whether agents of a region can match: it may name another region, and then this one need not know it."""
        return not self.observe_only and any(
            revision.selector.labels.get("region") in (None, region) for revision in self.in_force
        )

    def after(self, rollout: Rollout) -> AssignmentState:
        """With a rollout that has taken a step; what follows of it for the revisions is done here and nowhere else."""
        if self.pending is not None and self.pending.name == rollout.name:
            if rollout.state is State.PENDING_APPROVAL:
                return dataclasses.replace(self, pending=rollout)
            cleared = dataclasses.replace(self, pending=None)
            return cleared._begun(rollout) if rollout.state not in (State.REJECTED, State.ABORTED) else cleared
        if rollout.state is State.COMPLETED:
            return dataclasses.replace(self, stable=rollout.candidate, rollout=rollout, layers=())
        if rollout.state in GOING:
            return dataclasses.replace(self, rollout=rollout)
        return dataclasses.replace(self, rollout=rollout, layers=())

    def _begun(self, rollout: Rollout) -> AssignmentState:
        """A new rollout goes out; agents of the one that it supersedes keep what they have until their turn comes.

        Not of one that failed: there is nothing to be kept. Priority and slot are no matter of stages.
        """
        layers = self.layers
        if self.rollout is not None and self.rollout.state in GOING and not self.rollout.failed:
            layers = (self.rollout, *layers)[:_MOST_LAYERS]
        candidate = rollout.candidate
        moved = dataclasses.replace(self, layers=layers, priority=candidate.priority, slot=candidate.slot)
        return moved.after(rollout)


@dataclass(slots=True)
class Advance:
    """What follows from a change; nothing counts before it is stored."""

    states: dict[str, AssignmentState]
    templates: dict[str, ConfigTemplate]
    contents: dict[str, bytes]
    rollouts: list[Rollout] = field(default_factory=list)
    """Those that are new or took a step."""
    gone: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Assignment that was deleted → (number, retry) that it had reached: names and generations are never used twice."""


Targets = Callable[[Rollout, Advance], list[tuple[str, str]]]
"""(region, agent id) of all agents for which a rollout changes something, where the advance is in force."""


def content_inputs(advance: Advance, revision: GlobalRevision, region: str) -> tuple[ConfigTemplate, Mapping[str, Any]]:
    """The template of a revision, and the values of a region's variables that it pins."""
    pin = revision.variables.get(region, "")
    payload = advance.contents.get(f"RegionVariables/{pin}") if pin else None
    values = RegionVariables.model_validate_json(payload).spec.values if payload else {}
    return advance.templates[revision.template], values


class Revisions:
    """The state of all assignments, and the contents that their revisions pin."""

    def __init__(self, database: Database, *, rules: Rules, targets: Targets) -> None:
        self._database = database
        self._rules = rules
        self._targets = targets
        self.changing = asyncio.Lock()
        """Held from reading the states to their replacement: of two changes at once none may lose the other's."""
        self.states: dict[str, AssignmentState] = {}
        self._gone: dict[str, tuple[int, int]] = {}
        self._templates: dict[str, ConfigTemplate] = {}
        self._contents: dict[str, bytes] = {}
        """Resource name → payload of every pinned RegionVariables, old ones too."""

    async def load(self, templates: Mapping[str, ConfigTemplate], assignments: Mapping[str, ConfigAssignment]) -> None:
        """Read where every assignment is; the documents are read already."""
        async with self._database.read() as connection:
            rows = (await connection.execute(sa.select(schema.assignments))).all()
            contents = (await connection.execute(sa.select(schema.contents))).all()
            bodies = (await connection.execute(sa.select(schema.rollouts.c.name, schema.rollouts.c.body))).all()
        self._templates = dict(templates)
        self._contents = {row.name: row.payload for row in contents}
        rollouts = {row.name: Rollout.from_plain(json.loads(row.body)) for row in bodies}
        for row in rows:
            held = json.loads(row.body)
            if row.name not in assignments:
                self._gone[row.name] = (held["number"], held["retry"])
                continue
            spec = assignments[row.name].spec
            self.states[row.name] = AssignmentState(
                name=row.name,
                slot=held["slot"],
                priority=held["priority"],
                observe_only=spec.observe_only,
                number=held["number"],
                retry=held["retry"],
                stable=GlobalRevision.from_plain(held["stable"]),
                declared=GlobalRevision.from_plain(held["declared"]),
                rollout=rollouts.get(held["rollout"]),
                pending=rollouts.get(held["pending"]),
                layers=tuple(rollouts[name] for name in held["layers"]),
            )

    # ---- what follows from documents

    def advance(
        self,
        templates: Mapping[str, ConfigTemplate],
        assignments: Mapping[str, ConfigAssignment],
        variables: Mapping[str, RegionVariables],
        strategies: Mapping[str, RolloutStrategy],
        *,
        actor: str,
        now_ms: int,
    ) -> Advance:
        """Give the states that follow from documents; nothing changes yet."""
        resources = dict(variables_resource(v) for v in variables.values())
        pins = {name.partition("/")[2].rpartition("@")[0]: name.partition("/")[2] for name in resources}
        advance = Advance(dict(self.states), dict(templates), {**self._contents, **resources}, gone=dict(self._gone))
        for name in self.states.keys() - assignments.keys():
            state = advance.states.pop(name)
            advance.gone[name] = (state.number, state.retry)
            advance.rollouts += [
                plan.abort(r, "its assignment was deleted", now_ms)
                for r in (state.rollout, state.pending)
                if r and r.active
            ]
        for name, assignment in assignments.items():
            spec = assignment.spec
            template = templates[f"{spec.template.name}@{spec.template.version}"]
            declared = {v.name for v in template.spec.variables}
            # Variables that the template does not declare cannot change what it renders: they are not pinned.
            pinned = {region: pin for region, pin in pins.items() if declared & variables[region].spec.values.keys()}
            revision = GlobalRevision(
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
            number, retry = advance.gone.pop(name, (0, 0))
            state = self.states.get(name) or AssignmentState(name, spec.slot, spec.priority, number=number, retry=retry)
            state = dataclasses.replace(state, observe_only=spec.observe_only)
            advance.states[name] = state
            strategy = strategies[spec.strategy].spec if spec.strategy and not spec.observe_only else AT_ONCE
            edited = state.pending is not None and not self._as_pending(state.pending, spec, strategy)
            if state.declared != revision or edited:
                self._change(
                    advance, dataclasses.replace(state, declared=revision), assignment, strategy, actor, now_ms
                )
        self._drop_unpinned(advance)
        return advance

    def _approval(self, spec: AssignmentSpec) -> tuple[int, bool]:
        """(approvals that a change needs, whether its author's does not count)."""
        rules, own = self._rules, spec.approval
        required = rules.approval_required if own is None or own.required is None else own.required
        needed = (own.needed if own is not None and own.needed else rules.approvals_needed) if required else 0
        return needed, rules.four_eyes if own is None or own.four_eyes is None else own.four_eyes

    def _as_pending(self, pending: Rollout, spec: AssignmentSpec, strategy: StrategySpec) -> bool:
        """Whether what waits for approval is still what the documents say."""
        return pending.strategy == strategy and (pending.needed, pending.four_eyes) == self._approval(spec)

    def _change(
        self,
        advance: Advance,
        state: AssignmentState,
        assignment: ConfigAssignment,
        strategy: StrategySpec,
        actor: str,
        now_ms: int,
    ) -> None:
        """Begin the rollout to what `state` declares."""
        assert state.declared is not None
        needed, four_eyes = self._approval(assignment.spec)
        number = state.number + 1
        rollout = Rollout(
            name=f"{state.name}-{number}",
            assignment=state.name,
            candidate=state.declared,
            stable=state.stable,
            strategy=strategy,
            digest=sha256(canonical_json([state.declared.plain(), strategy.model_dump(), needed, four_eyes])).hex(),
            created_by=actor,
            created_ms=now_ms,
            state=State.PENDING_APPROVAL,
            on_failure=strategy.failure_policy.action or ("rollback" if self._rules.rollback_on_error else "pause"),
            needed=needed,
            four_eyes=four_eyes,
            authors=tuple(dict.fromkeys((actor, *(state.pending.authors if state.pending is not None else ())))),
        )
        self._submit(advance, state, rollout, now_ms)

    def _submit(self, advance: Advance, state: AssignmentState, rollout: Rollout, now_ms: int) -> None:
        """Put a new rollout into `advance`, in the place of one that waits."""
        if state.pending is not None:
            advance.rollouts.append(plan.supersede(state.pending, rollout.name, now_ms))
        state = dataclasses.replace(state, number=state.number + 1, pending=rollout)
        self.begin_if_approved(advance, state, rollout, now_ms)

    def begin_if_approved(self, advance: Advance, state: AssignmentState, rollout: Rollout, now_ms: int) -> None:
        """Put a rollout that waited into `advance`: going out, if it has the approvals that it needs."""
        # What is stable may have changed while it waited.
        rollout = dataclasses.replace(rollout, stable=state.stable)
        state = advance.states[state.name] = dataclasses.replace(state, pending=rollout)
        if not plan.approved(rollout):
            advance.rollouts.append(rollout)
            return
        if rollout.strategy == AT_ONCE:
            begun = plan.complete_at_once(rollout, "at once, without a strategy", now_ms)
        elif rollout.candidate == state.stable:
            begun = plan.complete_at_once(rollout, "back to the stable revision", now_ms)
        else:
            begun = plan.begin(rollout, self._targets(rollout, advance), now_ms)
        old, after = state.rollout, state.after(begun)
        if old is not None and old.active:
            ended = plan.supersede(old, rollout.name, now_ms)
            advance.rollouts.append(ended)
            after = dataclasses.replace(after, layers=tuple(ended if r.name == old.name else r for r in after.layers))
        advance.states[state.name] = after
        advance.rollouts.append(begun)

    def again(self, advance: Advance, state: AssignmentState, ended: Rollout, actor: str, now_ms: int) -> None:
        """Put into `advance` a new rollout to what an ended one was for."""
        fresh = dataclasses.replace(
            ended,
            name=f"{state.name}-{state.number + 1}",
            stable=state.stable,
            created_by=actor,
            created_ms=now_ms,
            authors=tuple(dict.fromkeys((actor, *ended.authors))),
            failed=False,
            state=State.PENDING_APPROVAL,
            reason="",
            stage=0,
            thresholds={},
            passed=(),
            approvals=(),
            ended_ms=0,
        )
        self._submit(advance, state, fresh, now_ms)

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
            f"RegionVariables/{pin}"
            for state in advance.states.values()
            for revision in state.revisions
            for pin in revision.variables.values()
        }
        advance.contents = {name: payload for name, payload in advance.contents.items() if name in needed}

    # ---- storing

    async def store(self, connection: AsyncConnection, advance: Advance) -> None:
        """Write it, in the caller's transaction."""
        rows = [
            {"name": s.name, "body": canonical_json(_plain(s)).decode()}
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
        return {s.name for s in self.states.values() if any(r.template == key for r in s.revisions)}

    def resources(self, region: str) -> dict[str, bytes]:
        """Everything that a region is to hold: name → payload."""
        return self._resources(self.same(), region)

    def aimed(self, advance: Advance, region: str) -> dict[str, bytes]:
        """What a region would hold if every change that is declared were complete."""
        states = {
            name: AssignmentState(
                name,
                state.declared.slot if state.declared else state.slot,
                state.declared.priority if state.declared else state.priority,
                state.observe_only,
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
            published = state.for_region(region)
            name, payload = assignment_resource(published)
            found[name] = payload
            changes = [published.rollout] if published.rollout else []
            for revision in (published.stable, *(c.candidate for c in [*changes, *published.layers])):
                if revision is None:
                    continue
                name, payload = template_resource(advance.templates[revision.template])
                found[name] = payload
                if revision.variables:
                    variables = f"RegionVariables/{revision.variables}"
                    found[variables] = advance.contents[variables]
        return found


def _plain(state: AssignmentState) -> dict[str, Any]:
    return {
        "slot": state.slot,
        "priority": state.priority,
        "number": state.number,
        "retry": state.retry,
        "stable": state.stable.plain() if state.stable else None,
        "declared": state.declared.plain() if state.declared else None,
        "rollout": state.rollout.name if state.rollout else None,
        "pending": state.pending.name if state.pending else None,
        "layers": [layer.name for layer in state.layers],
    }

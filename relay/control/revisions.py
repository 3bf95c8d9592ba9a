"""Revisions of assignments: what each pins, which is stable and which candidate, and the resources that they need.

A change of any input of an assignment (its template, its values, a region's variables) makes a new revision, which is
rolled out. Without a strategy the rollout's threshold is everyone from its start: the same path, at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.documents import canonical_json
from relay.ids import sha256
from relay.policy import rollout
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables, Selector
from relay.policy.snapshot import (
    Published,
    Revision,
    Rollout,
    assignment_resource,
    template_resource,
    variables_resource,
)
from relay.policy.template import RENDERER


@dataclass(frozen=True, slots=True)
class GlobalRevision:
    """One state of an assignment in all regions: regions differ in the variables that it pins."""

    template: str
    template_digest: str
    values: dict[str, Any]
    variables: dict[str, str]
    """Region → NAME@DIGEST of its variables; a region that is missing has none."""
    renderer: int

    def for_region(self, region: str) -> Revision:
        """As one region gets it."""
        return Revision(
            template=self.template,
            template_digest=self.template_digest,
            values=self.values,
            variables=self.variables.get(region, ""),
            renderer=self.renderer,
        )

    def encode(self) -> str:
        """JSON."""
        return canonical_json({name: getattr(self, name) for name in self.__slots__}).decode()

    @classmethod
    def decode(cls, text: str | None) -> GlobalRevision | None:
        """Undo `encode`."""
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class AssignmentState:
    """An assignment between its revisions."""

    name: str
    slot: str
    priority: int
    selector: Selector
    number: int
    """Counts its rollouts from 1."""
    stable: GlobalRevision | None
    candidate: GlobalRevision | None
    threshold: int

    @property
    def newest(self) -> GlobalRevision | None:
        """What it is to become."""
        return self.candidate or self.stable

    def for_region(self, region: str) -> Published:
        """As one region gets it."""
        change = None
        if self.candidate is not None:
            change = Rollout(
                id=f"{self.name}-{self.number}",
                candidate=self.candidate.for_region(region),
                threshold=self.threshold,
            )
        return Published(
            name=self.name,
            slot=self.slot,
            priority=self.priority,
            selector=self.selector,
            stable=self.stable.for_region(region) if self.stable else None,
            rollout=change,
        )

    def concerns(self, region: str) -> bool:
        """Whether agents of a region can match: it may name another region, and then this one need not know it."""
        wanted = self.selector.labels.get("region")
        return wanted is None or wanted == region


class Revisions:
    """The state of all assignments, and the contents that their revisions pin."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.states: dict[str, AssignmentState] = {}
        self._templates: dict[str, ConfigTemplate] = {}
        self._contents: dict[str, bytes] = {}
        """Resource name → payload of every pinned RegionVariables, old ones too."""

    async def load(self, templates: Mapping[str, ConfigTemplate], assignments: Mapping[str, ConfigAssignment]) -> None:
        """Read where every assignment is; the documents are read already."""
        async with self._database.read() as connection:
            rows = (await connection.execute(sa.select(schema.assignments))).all()
            contents = (await connection.execute(sa.select(schema.contents))).all()
        self._templates = dict(templates)
        self._contents = {row.name: row.payload for row in contents}
        for row in rows:
            spec = assignments[row.name].spec
            self.states[row.name] = AssignmentState(
                row.name,
                spec.slot,
                spec.priority,
                spec.target_selector,
                row.number,
                GlobalRevision.decode(row.stable),
                GlobalRevision.decode(row.candidate),
                row.threshold,
            )

    def advance(
        self,
        templates: Mapping[str, ConfigTemplate],
        assignments: Mapping[str, ConfigAssignment],
        variables: Mapping[str, RegionVariables],
    ) -> Advance:
        """Give the states that follow from documents; nothing changes yet."""
        resources = dict(variables_resource(v) for v in variables.values())
        pins = {name.partition("/")[2].rpartition("@")[0]: name.partition("/")[2] for name in resources}
        states: dict[str, AssignmentState] = {}
        for name, assignment in assignments.items():
            spec = assignment.spec
            template = templates[f"{spec.template.name}@{spec.template.version}"]
            declared = {v.name for v in template.spec.variables}
            # Variables that the template does not declare cannot change what it renders: they are not pinned.
            pinned = {region: pin for region, pin in pins.items() if declared & variables[region].spec.values.keys()}
            revision = GlobalRevision(
                template.key, sha256(template_resource(template)[1]).hex(), dict(spec.values), pinned, RENDERER
            )
            before = self.states.get(name)
            if before is not None and before.newest == revision:
                number, stable, candidate = before.number, before.stable, before.candidate
            else:
                number = before.number + 1 if before else 1
                stable, candidate = before.newest if before else None, revision
            states[name] = AssignmentState(
                name, spec.slot, spec.priority, spec.target_selector, number, stable, candidate, rollout.EVERYONE
            )
        needed = {
            f"RegionVariables/{pin}"
            for state in states.values()
            for revision in (state.stable, state.candidate)
            if revision is not None
            for pin in revision.variables.values()
        }
        contents = {n: p for n, p in {**self._contents, **resources}.items() if n in needed}
        return Advance(states, dict(templates), contents)

    async def store(self, connection: AsyncConnection, advance: Advance) -> None:
        """Write what `advance` gave, in the caller's transaction."""
        rows = [
            {
                "name": s.name,
                "number": s.number,
                "stable": s.stable.encode() if s.stable else None,
                "candidate": s.candidate.encode() if s.candidate else None,
                "threshold": s.threshold,
            }
            for s in advance.states.values()
            if s != self.states.get(s.name)
        ]
        await replace(connection, schema.assignments, rows)
        gone = [{"name": name} for name in self.states.keys() - advance.states.keys()]
        if gone:
            await remove(connection, schema.assignments, gone)
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

    def users_of_template(self, key: str) -> set[str]:
        """Assignments of which a revision pins this NAME@VERSION."""
        return {
            state.name
            for state in self.states.values()
            if any(r is not None and r.template == key for r in (state.stable, state.candidate))
        }

    def resources(self, region: str) -> dict[str, bytes]:
        """Everything that a region is to hold: name → payload."""
        found: dict[str, bytes] = {}
        for state in self.states.values():
            if not state.concerns(region):
                continue
            published = state.for_region(region)
            name, payload = assignment_resource(published)
            found[name] = payload
            candidate = published.rollout.candidate if published.rollout else None
            for revision in (published.stable, candidate):
                if revision is None:
                    continue
                name, payload = template_resource(self._templates[revision.template])
                found[name] = payload
                if revision.variables:
                    found[f"RegionVariables/{revision.variables}"] = self._contents[
                        f"RegionVariables/{revision.variables}"
                    ]
        return found


@dataclass(frozen=True, slots=True)
class Advance:
    """What follows from a change of documents."""

    states: dict[str, AssignmentState]
    templates: dict[str, ConfigTemplate]
    contents: dict[str, bytes]

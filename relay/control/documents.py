"""Documents that people apply: checked together, stored in one transaction, or not at all.

What is checked here is what needs the other documents or the fleet: templates that exist and do not change, values that
every region can resolve, assignments that do not contend for the same agents.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from relay.aio.clock import Clock
from relay.control import audit
from relay.control.revisions import Revisions
from relay.control.rollouts.model import GlobalRevision
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.documents import Document, canonical_json, parse
from relay.errors import NotFound, Outcome, Problem, Refused, StoreError
from relay.ids import sha256
from relay.policy import collector, kinds
from relay.policy import template as templates
from relay.policy.kinds import AnyDocument
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.selector import Facts, Matcher, implies
from relay.policy.strategy import RolloutStrategy

ANONYMOUS = "anonymous"
"""The actor of a change whose author said nothing."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one document."""

    kind: str
    name: str
    action: str
    """`created`, `configured`, `unchanged` or `deleted`."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Proposal:
    """What documents would change."""

    library: Library
    applied: list[Applied] = field(default_factory=list)
    changed: list[AnyDocument] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    findings: list[Problem] = field(default_factory=list)
    """Errors in Collectors' configurations."""


@dataclass(slots=True)
class Library:
    """All documents in force, by kind and key."""

    templates: dict[str, ConfigTemplate] = field(default_factory=dict)
    assignments: dict[str, ConfigAssignment] = field(default_factory=dict)
    variables: dict[str, RegionVariables] = field(default_factory=dict)
    strategies: dict[str, RolloutStrategy] = field(default_factory=dict)

    def of(self, document_or_kind: AnyDocument | str) -> dict[str, Any]:
        """The documents of one kind."""
        kind = document_or_kind if isinstance(document_or_kind, str) else document_or_kind.kind
        by_kind: dict[str, dict[str, Any]] = {
            "ConfigTemplate": self.templates,
            "ConfigAssignment": self.assignments,
            "RegionVariables": self.variables,
            "RolloutStrategy": self.strategies,
        }
        if kind not in by_kind:
            raise NotFound(f"there is no kind {kind}; there are {', '.join(by_kind)}")
        return by_kind[kind]

    def copy(self) -> Library:
        """A library that can be changed without changing this one."""
        return Library(dict(self.templates), dict(self.assignments), dict(self.variables), dict(self.strategies))


class Documents:
    """The documents of the control plane.

    Args:
        facts: all agents known now, as selectors see them.
        validation: `warn`, `enforce` or `off`: what comes of errors in Collectors' configurations.
        regions: names of those that have agents or a node that is connected.
    """

    def __init__(
        self,
        database: Database,
        revisions: Revisions,
        *,
        clock: Clock,
        facts: Callable[[], Iterable[Facts]],
        regions: Callable[[], Set[str]],
        validation: str = "warn",
    ) -> None:
        self._database = database
        self._revisions = revisions
        self._clock = clock
        self._facts = facts
        self._regions = regions
        self._validation = validation
        self.current = Library()

    async def load(self) -> None:
        """Read all documents."""
        async with self._database.read() as connection:
            rows = (await connection.execute(sa.select(schema.documents))).all()
        for row in rows:
            try:
                document = kinds.KINDS[row.kind].model_validate(json.loads(row.body))
            except (KeyError, ValueError) as error:
                raise StoreError(f"{row.kind} {row.key} in the database cannot be read: {error}") from error
            self.current.of(document)[document.key] = document

    # ---- apply

    async def apply(
        self, texts: Iterable[tuple[str, str]], *, dry_run: bool = False, actor: str = ANONYMOUS
    ) -> list[Applied]:
        """Apply all documents of some texts as one.

        Args:
            texts: (source name, YAML text).
            dry_run: check and compare, change nothing.
            actor: who does this.

        Raises:
            Refused: with every problem; nothing was changed.
        """
        # In a thread: a megabyte of YAML takes seconds, and nodes are answered meanwhile.
        parsed = await asyncio.to_thread(read, list(texts))
        async with self._revisions.changing:
            return await self._apply(parsed, dry_run, actor)

    async def _apply(self, parsed: list[tuple[Document, AnyDocument]], dry_run: bool, actor: str) -> list[Applied]:
        proposal = self.propose(parsed)
        problems = [*proposal.problems, *proposal.conflicts]
        if self._validation == "enforce":
            problems += proposal.findings
        if problems:
            raise Refused(problems)
        if not dry_run and proposal.changed:
            await self._store(proposal.library, proposal.changed, [], actor)
        return proposal.applied

    def propose(self, parsed: list[tuple[Document, AnyDocument]]) -> Proposal:
        """What documents would make of the library, and all that is wrong with that; nothing changes."""
        library = self.current.copy()
        proposal = Proposal(library)
        for source, document in parsed:
            held = library.of(document)
            before = held.get(document.key)
            if before == document:
                proposal.applied.append(_applied(document, "unchanged", before))
                continue
            if before is not None and isinstance(document, ConfigTemplate):
                reason = f"{document.key} exists with other content; a version never changes, use a new one"
                proposal.problems.append(source.problem("metadata.version", reason))
                continue
            held[document.key] = document
            proposal.changed.append(document)
            findings = self._findings(source, document)
            proposal.findings += [problem for problem, is_error in findings if is_error]
            warnings = tuple(str(problem) for problem, _ in findings)
            proposal.applied.append(_applied(document, "configured" if before else "created", before, warnings))
        sources: dict[tuple[str, str], Document] = {(d.kind, d.key): s for s, d in parsed}
        proposal.problems += self._check(library, proposal.changed, sources)
        moved = [d for d in proposal.changed if isinstance(d, ConfigAssignment)]
        proposal.conflicts += [
            sources[(a.kind, a.key)].problem("spec.priority", reason) for a, reason in self._conflicts(library, moved)
        ]
        return proposal

    def _findings(self, source: Document, document: AnyDocument) -> list[tuple[Problem, bool]]:
        """(what is wrong with a template as a Collector's configuration, whether it is an error)."""
        if self._validation == "off" or not isinstance(document, ConfigTemplate):
            return []
        if not collector.is_collector_config(document.spec.config):
            return []
        return [
            (source.problem(f"spec.config.{f.path}", f.reason), f.is_error)
            for f in collector.check(document.spec.config)
        ]

    def _check(
        self, library: Library, changed: list[AnyDocument], sources: Mapping[tuple[str, str], Document]
    ) -> list[Problem]:
        """What is wrong with `library` because of the documents in `changed`."""
        problems: list[Problem] = []
        variables_changed = [d for d in changed if isinstance(d, RegionVariables)]
        own_keys = {d.key for d in changed if isinstance(d, ConfigAssignment)}
        for assignment in library.assignments.values():
            own = sources.get(("ConfigAssignment", assignment.key)) if assignment.key in own_keys else None
            blamed = own or (sources[("RegionVariables", variables_changed[0].key)] if variables_changed else None)
            if blamed is None:
                continue
            reference = assignment.spec.template
            template = library.templates.get(f"{reference.name}@{reference.version}")
            if template is None:
                reason = f"there is no ConfigTemplate {reference.name}@{reference.version}"
                problems.append(blamed.problem("spec.template", reason))
                continue
            for path, reason in self._unresolved(library, assignment, template):
                if own is not None:
                    problems.append(own.problem(path, reason))
                else:
                    problems.append(blamed.problem("spec.values", f"ConfigAssignment {assignment.key}: {reason}"))
            if assignment.spec.strategy is not None and assignment.spec.strategy not in library.strategies:
                reason = f"there is no RolloutStrategy {assignment.spec.strategy}"
                problems.append(blamed.problem("spec.strategy", reason))
        for strategy in (d for d in changed if isinstance(d, RolloutStrategy)):
            source = sources[strategy.kind, strategy.key]
            for i, window in enumerate(strategy.spec.windows):
                if not _is_time_zone(window.time_zone):
                    path = f"spec.windows.{i}.time_zone"
                    problems.append(source.problem(path, f"{window.time_zone!r} is not a time zone"))
        return problems

    def _unresolved(
        self, library: Library, assignment: ConfigAssignment, template: ConfigTemplate, also: Set[str] = frozenset()
    ) -> list[tuple[str, str]]:
        """(path, reason) of values that a region with variables, or the one that is selected, could not resolve.

        A region that has only nodes is not looked at, unless it is in `also`: one that joins later must not stand in the
        way of every change. There the node rejects the assignment, and says so.
        """
        wanted = assignment.spec.target_selector.labels.get("region")
        # A region without variables of its own, known or not, shows as the empty one.
        regions = {str(wanted)} if wanted is not None else library.variables.keys() | {""} | also
        found: dict[tuple[str, str], None] = {}
        for region in sorted(regions):
            variables = library.variables.get(region)
            _, problems = templates.resolve(
                template, assignment.spec.values, variables.spec.values if variables else {}
            )
            # The empty region stands for one that nobody knows yet: it counts only where there is no other.
            if region == "" and len(regions - {""}) > 0:
                problems = [(name, reason) for name, reason in problems if name in assignment.spec.values]
            for name, reason in problems:
                where = f" in region {region}" if region and name not in assignment.spec.values else ""
                path = f"spec.values.{name}" if name in assignment.spec.values else "spec.values"
                found[path, reason + where] = None
        return list(found)

    def _conflicts(self, library: Library, moved: list[ConfigAssignment]) -> list[tuple[ConfigAssignment, str]]:
        """Assignments of one priority and slot that contend for the same agents."""
        groups: dict[tuple[int, str], list[ConfigAssignment]] = {}
        for assignment in library.assignments.values():
            groups.setdefault((assignment.spec.priority, assignment.spec.slot), []).append(assignment)
        keys = {a.key for a in moved}
        found: list[tuple[ConfigAssignment, str]] = []
        facts: list[Facts] | None = None
        for (priority, slot), group in groups.items():
            if len(group) < 2 or not any(a.key in keys for a in group):
                continue
            if facts is None:
                facts = list(self._facts())
            matcher = Matcher([a.spec.target_selector for a in group])
            vectors = {matcher.vector(agent): agent.agent_id for agent in facts}
            for i, one in enumerate(group):
                for j, other in enumerate(group[:i]):
                    if one.key not in keys and other.key not in keys:
                        continue
                    blamed, named = (one, other) if one.key in keys else (other, one)
                    selectors = one.spec.target_selector, other.spec.target_selector
                    reason = f"ConfigAssignment {named.key} has the same priority {priority}"
                    if slot:
                        reason += f" and slot {slot}"
                    if implies(*selectors) or implies(*reversed(selectors)):
                        found.append((blamed, f"{reason}, and agents of the one are agents of the other"))
                        continue
                    both = next(
                        (name for v, name in vectors.items() if matcher.matches(i, v) and matcher.matches(j, v)), None
                    )
                    if both is not None:
                        found.append((blamed, f"{reason}, and agent {both} matches both"))
        return found

    async def again(self, name: str, earlier: GlobalRevision, *, actor: str) -> Applied:
        """Make an assignment ask again for what it asked for earlier; its slot, priority and strategy stay.

        Raises:
            NotFound: there is no assignment of that name.
            Refused: that revision no longer fits (its template is gone).
        """
        now = self.get("ConfigAssignment", name)
        template, _, version = earlier.template.rpartition("@")
        spec = {
            **now["spec"],
            "template": {"name": template, "version": version},
            "values": earlier.values,
            "target_selector": earlier.selector.model_dump(exclude_unset=True),
        }
        text = canonical_json({**now, "spec": spec}).decode()
        (applied,) = await self.apply([(f"ConfigAssignment/{name}", text)], actor=actor)
        return applied

    # ---- delete

    async def delete(self, kind: str, key: str, *, actor: str = ANONYMOUS) -> Applied:
        """Delete one document.

        Raises:
            NotFound: there is none of that name.
            Refused: an assignment uses it.
        """
        async with self._revisions.changing:
            return await self._delete(kind, key, actor)

    async def _delete(self, kind: str, key: str, actor: str) -> Applied:
        library = self.current.copy()
        held = library.of(kind)
        document = held.pop(key, None)
        if document is None:
            raise NotFound(f"there is no {kind} {key}")
        source = Document(f"{kind}/{key}", None, 0)
        problems: list[Problem] = []
        if isinstance(document, ConfigTemplate):
            users = self._revisions.users_of_template(key) | {
                a.key
                for a in library.assignments.values()
                if f"{a.spec.template.name}@{a.spec.template.version}" == key
            }
            if users:
                problems.append(source.problem("", f"in use by ConfigAssignment {', '.join(sorted(users))}"))
        elif isinstance(document, RegionVariables):
            for assignment in library.assignments.values():
                reference = assignment.spec.template
                template = library.templates[f"{reference.name}@{reference.version}"]
                also = {key} if key in self._regions() else set()
                for _, reason in self._unresolved(library, assignment, template, also):
                    problems.append(source.problem("", f"ConfigAssignment {assignment.key}: {reason}"))
        elif isinstance(document, RolloutStrategy):
            users = {a.key for a in library.assignments.values() if a.spec.strategy == key}
            if users:
                problems.append(source.problem("", f"in use by ConfigAssignment {', '.join(sorted(users))}"))
        if problems:
            raise Refused(problems, outcome=Outcome.CONFLICT)
        await self._store(library, [], [document], actor)
        return _applied(document, "deleted", document)

    async def _store(
        self, library: Library, changed: list[AnyDocument], deleted: list[AnyDocument], actor: str
    ) -> None:
        now = self._clock.unix_ms()
        rows = [
            {
                "kind": d.kind,
                "key": d.key,
                "body": canonical_json(d.model_dump(exclude_unset=True)).decode(),
                "updated_ms": now,
            }
            for d in changed
        ]
        states = self._revisions.advance(
            library.templates, library.assignments, library.variables, library.strategies, actor=actor, now_ms=now
        )
        entries = [
            audit.Entry(actor, action, f"{d.kind}/{d.key}", _digest(self.current.of(d).get(d.key)), _digest(after))
            for action, documents in (("apply", changed), ("delete", deleted))
            for d in documents
            for after in [d if action == "apply" else None]
        ]
        entries += [
            audit.Entry(actor, r.state.value, f"Rollout/{r.name}", "", r.digest[:16], r.reason) for r in states.rollouts
        ]
        async with self._database.write() as connection:
            await replace(connection, schema.documents, rows)
            await remove(connection, schema.documents, [{"kind": d.kind, "key": d.key} for d in deleted])
            await self._revisions.store(connection, states)
            await audit.add(connection, entries, now)
        self.current = library
        self._revisions.put_in_force(states)

    # ---- views

    def listing(self, kind: str) -> list[dict[str, Any]]:
        """All documents of a kind, by name."""
        held = self.current.of(kind)
        return [held[key].model_dump(exclude_unset=True) for key in sorted(held)]

    def get(self, kind: str, key: str) -> dict[str, Any]:
        """One document.

        Raises:
            NotFound: there is none.
        """
        document = self.current.of(kind).get(key)
        if document is None:
            raise NotFound(f"there is no {kind} {key}")
        value: dict[str, Any] = document.model_dump(exclude_unset=True)
        return value


def _digest(document: AnyDocument | None) -> str:
    return "" if document is None else sha256(canonical_json(document.model_dump(exclude_unset=True))).hex()[:16]


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _applied(document: AnyDocument, action: str, before: AnyDocument | None, warnings: tuple[str, ...] = ()) -> Applied:
    return Applied(
        document.kind,
        document.key,
        action,
        before.model_dump(exclude_unset=True) if before else None,
        None if action == "deleted" else document.model_dump(exclude_unset=True),
        warnings,
    )


def read(texts: Iterable[tuple[str, str]]) -> list[tuple[Document, AnyDocument]]:
    problems: list[Problem] = []
    found: list[tuple[Document, AnyDocument]] = []
    first: dict[tuple[str, str], Document] = {}
    for source, text in texts:
        try:
            documents = parse(text, source)
        except Refused as refused:
            problems += refused.problems
            continue
        if not documents:
            problems.append(Problem(source, 0, "", "holds no document"))
        for raw in documents:
            document, wrong = kinds.read(raw)
            problems += wrong
            if document is None:
                continue
            identity = (document.kind, document.key)
            if identity in first:
                other = first[identity]
                reason = f"{document.kind} {document.key} stands also at {other.source}:{other.line}"
                problems.append(raw.problem("", reason))
                continue
            first[identity] = raw
            if isinstance(document, ConfigTemplate):
                problems += [raw.problem(p, r) for p, r in templates.problems_of(document)]
            found.append((raw, document))
    if problems:
        raise Refused(problems)
    return found

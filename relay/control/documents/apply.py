"""Documents that people apply: checked together (see `checks`), stored in one transaction, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from relay.aio.clock import Clock
from relay.control.documents.checks import Checks
from relay.control.ledger import audit, versions
from relay.control.ledger.catalog import Catalog
from relay.control.ledger.revisions import Revisions
from relay.control.rollouts.assignment import Advance
from relay.control.rollouts.model import GlobalConfig, GlobalRevision
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.control.storage.sealed import read_truth
from relay.documents import Document, canonical_json, parse, parts_of
from relay.errors import NotFound, Outcome, Problem, Refused, StoreError
from relay.ids import sha256
from relay.policy import kinds
from relay.policy import template as templates
from relay.policy.kinds import AnyDocument
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment
from relay.policy.snapshot import template_resource
from relay.policy.strategy import RolloutStrategy
from relay.words import close_to

_NEEDS_APPROVAL = (
    "its changes need approval, and a deletion is one: first have a change approved that ends it for all agents "
    "(observe_only: true, or a target_selector that names nobody)"
)
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


@dataclass(frozen=True, slots=True)
class Begun:
    """A rollout that documents began and that is not over yet."""

    name: str
    assignment: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of documents, and what they began."""

    applied: list[Applied]
    rollouts: list[Begun] = field(default_factory=list)


@dataclass(slots=True)
class Proposal:
    """What documents would change."""

    after: Catalog
    applied: list[Applied] = field(default_factory=list)
    changed: list[AnyDocument] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    findings: list[Problem] = field(default_factory=list)
    """Errors in Collectors' configurations."""


class Documents:
    """The documents of the control plane."""

    def __init__(self, database: Database, revisions: Revisions, checks: Checks, *, clock: Clock) -> None:
        self._database = database
        self._revisions = revisions
        self._checks = checks
        self._clock = clock
        self.current = Catalog()

    async def load(self) -> None:
        """Read all documents."""
        async with self._database.read() as connection:
            rows = await read_truth(connection, schema.documents)
        for row in rows:
            try:
                document = kinds.KINDS[row.kind].model_validate(json.loads(row.body))
            except (KeyError, ValueError) as error:
                raise StoreError(f"{row.kind} {row.key} in the database cannot be read: {error}") from error
            if (document.kind, document.key) != (row.kind, row.key):
                # A digest says that a value is as it was written, and not that it stands under its own name.
                name = f"{row.kind} {row.key} holds {document.kind} {document.key}"
                raise StoreError(f"table documents: {name}: it is damaged: restore a backup")
            self.current.of(document)[document.key] = document

    # ---- apply

    async def apply(
        self, texts: Iterable[tuple[str, str]], *, dry_run: bool = False, actor: str = ANONYMOUS
    ) -> Outcomes:
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

    async def _apply(self, parsed: list[tuple[Document, AnyDocument]], dry_run: bool, actor: str) -> Outcomes:
        proposal = self.propose(parsed)
        problems = [*proposal.problems, *proposal.conflicts]
        if self._checks.validation == "enforce":
            problems += proposal.findings
        if problems:
            raise Refused(problems)
        if dry_run or not proposal.changed:
            return Outcomes(proposal.applied)
        return Outcomes(proposal.applied, await self._store(proposal.after, proposal.changed, [], actor))

    def propose(self, parsed: list[tuple[Document, AnyDocument]]) -> Proposal:
        """What documents would make of the catalog, and all that is wrong with that; nothing changes."""
        catalog = self.current.copy()
        proposal = Proposal(catalog)
        lonely, known = self._checks.unmatched(
            [d for _, d in parsed if isinstance(d, ConfigAssignment | PackageAssignment)]
        )
        for source, document in parsed:
            held = catalog.of(document)
            before = held.get(document.key)
            if before == document:
                proposal.applied.append(_applied(document, "unchanged", before, self._taken_back(document)))
                continue
            if (
                isinstance(before, ConfigTemplate)
                and isinstance(document, ConfigTemplate)
                and not _same(before, document)
            ):
                reason = f"{document.key} exists with other content; a version never changes, use a new one"
                proposal.problems.append(source.problem("metadata.version", reason))
                continue
            held[document.key] = document
            proposal.changed.append(document)
            findings = self._checks.findings(source, document)
            proposal.findings += [problem for problem, is_error in findings if is_error]
            warnings = tuple(str(problem) for problem, _ in findings) + _given_up(before, document)
            if document.key in lonely and isinstance(document, ConfigAssignment | PackageAssignment):
                reason = f"matches none of the {known} agents that are known"
                warnings += (str(source.problem("spec.target_selector", reason)),)
            proposal.applied.append(_applied(document, "configured" if before else "created", before, warnings))
        sources: dict[tuple[str, str], Document] = {(d.kind, d.key): s for s, d in parsed}
        proposal.problems += self._checks.problems(catalog, proposal.changed, sources)
        moved = [d for d in proposal.changed if isinstance(d, ConfigAssignment | PackageAssignment)]
        proposal.conflicts += [
            sources[(a.kind, a.key)].problem("spec.priority", reason)
            for a, reason in self._checks.conflicts(catalog, moved)
        ]
        return proposal

    def _taken_back(self, document: AnyDocument) -> tuple[str, ...]:
        """A warning, where what an assignment asks for is not what goes out, and nothing is under way."""
        is_assignment = isinstance(document, ConfigAssignment | PackageAssignment)
        state = self._revisions.states.get(document.key) if is_assignment else None
        if state is None or state.declared == state.stable or state.pending or (state.rollout and state.rollout.active):
            return ()
        latest = f"{state.name}-{state.number}"
        if state.declared is not None and (gone := state.declared.versions & self.current.yanked):
            return (f"package {', '.join(sorted(gone))} was yanked; assign another version",)
        return (
            f"what it asks for was taken back or refused ({latest}); `opampctl rollout retry {latest}` begins anew",
        )

    async def again(self, name: str, earlier: GlobalRevision, *, actor: str) -> Applied:
        """Make an assignment ask again for what it asked for earlier; its strategy and approvals stay.

        Raises:
            NotFound: there is no assignment of that name.
            Refused: that revision no longer fits (its template is gone).
        """
        now = self.get(earlier.kind, name)
        spec = {
            **now["spec"],
            "target_selector": earlier.selector.model_dump(exclude_unset=True),
            "priority": earlier.priority,
        }
        if isinstance(earlier, GlobalConfig):
            template, _, version = earlier.template.rpartition("@")
            spec |= {
                "template": {"name": template, "version": version},
                "values": earlier.values,
                "slot": earlier.slot,
                "observe_only": earlier.observe_only,
            }
        else:
            parts = (pin.split("@") for pin in earlier.packages)
            spec |= {"packages": [{"name": name, "version": version} for name, version, _ in parts]}
        text = canonical_json({**now, "spec": spec}).decode()
        (applied,) = (await self.apply([(f"{earlier.kind}/{name}", text)], actor=actor)).applied
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
        catalog = self.current.copy()
        held = catalog.of(kind)
        document = held.pop(key, None)
        if document is None:
            raise NotFound(f"there is no {kind} {key}{close_to(key, held)}")
        source = Document(f"{kind}/{key}", None, 0)
        problems: list[Problem] = []
        if isinstance(document, ConfigTemplate):
            users = self._revisions.users_of_template(key) | {
                a.key for a in catalog.assignments.values() if a.spec.template.key == key
            }
            if users:
                problems.append(source.problem("", f"in use by ConfigAssignment {', '.join(sorted(users))}"))
        elif isinstance(document, RegionVariables):
            for assignment in catalog.assignments.values():
                template = catalog.templates[assignment.spec.template.key]
                for _, reason in self._checks.unresolved(catalog, assignment, template, self._checks.live(key)):
                    problems.append(source.problem("", f"ConfigAssignment {assignment.key}: {reason}"))
        elif isinstance(document, RolloutStrategy):
            users = {f"{a.kind} {a.key}" for a in catalog.all_assignments() if a.spec.strategy == key}
            if users:
                problems.append(source.problem("", f"in use by {', '.join(sorted(users))}"))
        elif isinstance(document, ConfigAssignment | PackageAssignment):
            state = self._revisions.states[key]
            if state.asked[0] and state.in_force:
                # Deleting changes what agents run, and nobody could approve it.
                problems.append(source.problem("", _NEEDS_APPROVAL))
        if problems:
            raise Refused(problems, outcome=Outcome.CONFLICT)
        await self._store(catalog, [], [document], actor)
        return _applied(document, "deleted", document)

    async def _store(
        self, catalog: Catalog, changed: list[AnyDocument], deleted: list[AnyDocument], actor: str
    ) -> list[Begun]:
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
        states = self._revisions.advance(catalog, actor=actor, now_ms=now, before=self.current)
        if problems := self._revisions.unpublishable(states):
            raise Refused([Problem(name, 0, "", reason) for name, reason in problems])
        entries = [
            audit.Entry(actor, "apply", f"{d.kind}/{d.key}", _digest(self.current.of(d).get(d.key)), _digest(d))
            for d in changed
        ]
        entries += [audit.Entry(actor, "delete", f"{d.kind}/{d.key}", _digest(d)) for d in deleted]
        entries += [
            audit.Entry(actor, r.state.value, f"Rollout/{r.name}", "", r.digest[:16], r.reason) for r in states.rollouts
        ]
        async with self._database.write() as connection:
            await replace(connection, schema.documents, rows)
            await remove(connection, schema.documents, [{"kind": d.kind, "key": d.key} for d in deleted])
            await versions.add(connection, [*rows, *({"kind": d.kind, "key": d.key} for d in deleted)], actor, now)
            await self._revisions.store(connection, states)
            await audit.add(connection, entries, now)
        return self._in_force(catalog, states)

    async def put_catalog(
        self,
        catalog: Catalog,
        entries: list[audit.Entry],
        write: Callable[[AsyncConnection], Awaitable[None]],
        *,
        actor: str,
    ) -> None:
        """Put a catalog in force whose packages changed, with what follows; `Revisions.changing` is held by the caller.

        Args:
            write: stores what changed, in the transaction.
        """
        now = self._clock.unix_ms()
        states = self._revisions.advance(catalog, actor=actor, now_ms=now)
        entries = entries + [
            audit.Entry(actor, r.state.value, f"Rollout/{r.name}", "", r.digest[:16], r.reason) for r in states.rollouts
        ]
        async with self._database.write() as connection:
            await write(connection)
            await self._revisions.store(connection, states)
            await audit.add(connection, entries, now)
        self._in_force(catalog, states)

    def _in_force(self, catalog: Catalog, states: Advance) -> list[Begun]:
        self.current = catalog
        self._revisions.put_in_force(states)
        return [Begun(r.name, r.assignment, r.state.value, r.reason) for r in states.rollouts if r.active]

    # ---- views

    def listing(self, kind: str, *, after: str = "") -> list[dict[str, Any]]:
        """All documents of a kind, by name, from behind one on."""
        held = self.current.of(kind)
        return [held[key].model_dump(exclude_unset=True) for key in sorted(held) if key > after]

    def get(self, kind: str, key: str) -> dict[str, Any]:
        """One document.

        Raises:
            NotFound: there is none.
        """
        document = self.current.of(kind).get(key)
        if document is None:
            raise NotFound(f"there is no {kind} {key}{close_to(key, self.current.of(kind))}")
        value: dict[str, Any] = document.model_dump(exclude_unset=True)
        return value


def _given_up(before: AnyDocument | None, after: AnyDocument) -> tuple[str, ...]:
    """Warnings of an assignment that gives up what made its changes safe."""
    kinds_ = ConfigAssignment | PackageAssignment
    if not isinstance(before, kinds_) or not isinstance(after, kinds_):
        return ()
    found = []
    if before.spec.strategy and not after.spec.strategy:
        found.append(
            f"it names no strategy any more: changes go out by {before.spec.strategy} until one has, later ones at once"
        )
    if before.spec.approval is not None and after.spec.approval is None:
        found.append("it asks for no approval of its own any more: this change still needs those that were asked for")
    return tuple(found)


def _same(one: ConfigTemplate, other: ConfigTemplate) -> bool:
    """Whether two templates of one version say the same; labels of documents are for people."""
    return template_resource(one) == template_resource(other)


def _digest(document: AnyDocument | None) -> str:
    return "" if document is None else sha256(canonical_json(document.model_dump(exclude_unset=True))).hex()[:16]


def _applied(document: AnyDocument, action: str, before: AnyDocument | None, warnings: tuple[str, ...] = ()) -> Applied:
    return Applied(
        document.kind,
        document.key,
        action,
        before.model_dump(exclude_defaults=True) if before else None,
        None if action == "deleted" else document.model_dump(exclude_defaults=True),
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
        for raw in parts_of(documents):
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

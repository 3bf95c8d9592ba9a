"""Applies and deletes documents: all are checked together and take effect together, or none do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.control.access.actor import ANONYMOUS, Actor
from relay.control.documents.checks import Checks
from relay.control.documents.deletion import obstacles
from relay.control.documents.proposal import Applied, Proposal, applied, propose
from relay.control.documents.reading import read
from relay.control.ledger.begin import Terms
from relay.control.ledger.catalog import Catalog, find
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.draft import Draft
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_documents
from relay.control.ledger.revise import check_publishable, revise
from relay.control.ledger.state import State
from relay.control.rollouts.revision import GlobalConfig, GlobalRevision
from relay.documents import Document, canonical_json
from relay.errors import Conflict, Outcome, Refused
from relay.ids import sha256
from relay.policy.reading import AnyDocument

MAX_BINDINGS = 1_000
"""Role bindings: each request of a session looks through them."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A rollout that applied documents began, and that has not ended yet."""

    name: str
    assignment: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The result of applying documents, and the rollouts that they began."""

    applied: list[Applied]
    rollouts: list[Begun] = field(default_factory=list)


class Documents:
    """The documents of the control plane."""

    def __init__(self, ledger: Ledger, checks: Checks, terms: Terms) -> None:
        self._ledger = ledger
        self._checks = checks
        self._terms = terms

    async def apply(
        self, texts: Iterable[tuple[str, str]], *, dry_run: bool = False, actor: Actor = ANONYMOUS
    ) -> Outcomes:
        """Apply all documents in some texts: all of them, or none.

        Args:
            texts: (source name, YAML text).
            dry_run: check and compare without changing anything.
            actor: who applies them, for the audit.

        Raises:
            Refused: with every problem. Nothing has changed.
        """
        # In a thread: a megabyte of YAML takes seconds, and nodes need answers meanwhile.
        parsed = await asyncio.to_thread(read, list(texts))
        if dry_run:
            return Outcomes(self._checked_proposal(self._ledger.state, parsed).applied)
        return await self._ledger.change(actor, lambda state, now_ms: self._change(state, parsed, actor, now_ms))

    def _change(
        self, state: State, parsed: list[tuple[Document, AnyDocument]], by: Actor, now_ms: int
    ) -> Change[Outcomes]:
        check_documents(by, state, state.catalog.put(*(document for _, document in parsed)))
        proposal = self._checked_proposal(state, parsed)
        if not proposal.changed:
            return Change(state, Outcomes(proposal.applied))
        if len(proposal.after.role_bindings) > MAX_BINDINGS:
            raise Conflict(f"there would be more than {MAX_BINDINGS} role bindings, the maximum; delete some")
        entries = [
            Entry("apply", f"{d.kind}/{d.key}", _digest(state.catalog.of(d.kind).get(d.key)), _digest(d))
            for d in proposal.changed
        ]
        draft = self._revise(state, proposal.after, by.identity, now_ms)
        return draft.change(Outcomes(proposal.applied, _begun(draft)), entries)

    def _checked_proposal(self, state: State, parsed: list[tuple[Document, AnyDocument]]) -> Proposal:
        proposal = propose(state, parsed, self._checks)
        problems = [*proposal.problems, *proposal.conflicts]
        if self._checks.validation == "enforce":
            problems += proposal.findings
        if problems:
            raise Refused(problems)
        return proposal

    def _revise(self, state: State, catalog: Catalog, by: str, now_ms: int) -> Draft:
        draft = revise(state, catalog, self._terms, by=by, now_ms=now_ms)
        check_publishable(draft)
        return draft

    async def apply_revision(self, name: str, earlier: GlobalRevision, *, actor: Actor) -> Applied:
        """Apply an earlier revision of an assignment again. Its strategy and approvals stay as they are now.

        Raises:
            NotFound: there is no assignment of that name.
            Refused: that revision is no longer valid, for example because its template was deleted.
        """
        now = self.get(earlier.kind, name)
        text = canonical_json({**now, "spec": {**now["spec"], **_spec(earlier)}}).decode()
        (result,) = (await self.apply([(f"{earlier.kind}/{name}", text)], actor=actor)).applied
        return result

    async def delete(self, kind: str, key: str, *, actor: Actor = ANONYMOUS) -> Applied:
        """Delete one document.

        Raises:
            NotFound: there is no such document.
            Refused: it is in use.
        """
        return await self._ledger.change(actor, lambda state, now_ms: self._deletion(state, kind, key, actor, now_ms))

    def _deletion(self, state: State, kind: str, key: str, by: Actor, now_ms: int) -> Change[Applied]:
        document = find(state.catalog, kind, key)
        check_documents(by, state, state.catalog.without(kind, key))
        if problems := obstacles(state, document, self._checks):
            raise Refused(problems, outcome=Outcome.CONFLICT)
        draft = self._revise(state, state.catalog.without(kind, key), by.identity, now_ms)
        entries = [Entry("delete", f"{kind}/{key}", _digest(document))]
        return draft.change(applied(document, "deleted", document), entries)

    # ---- views

    def listing(self, kind: str, *, after: str = "") -> list[dict[str, Any]]:
        """All documents of a kind whose names come after `after`, sorted by name."""
        documents = self._ledger.state.catalog.of(kind)
        return [documents[key].model_dump(exclude_unset=True) for key in sorted(documents) if key > after]

    def get(self, kind: str, key: str) -> dict[str, Any]:
        """One document.

        Raises:
            NotFound: there is no such document.
        """
        value: dict[str, Any] = find(self._ledger.state.catalog, kind, key).model_dump(exclude_unset=True)
        return value


def _begun(draft: Draft) -> list[Begun]:
    return [Begun(r.name, r.assignment, r.state.value, r.reason) for r in draft.rollouts if r.active]


def _spec(revision: GlobalRevision) -> dict[str, Any]:
    """The part of an assignment's spec that produces a revision."""
    spec: dict[str, Any] = {
        "target_selector": revision.selector.model_dump(exclude_unset=True),
        "priority": revision.priority,
    }
    if isinstance(revision, GlobalConfig):
        template, _, version = revision.template.rpartition("@")
        return spec | {
            "template": {"name": template, "version": version},
            "values": revision.values,
            "slot": revision.slot,
            "observe_only": revision.observe_only,
        }
    parts = (pin.split("@") for pin in revision.packages)
    return spec | {"packages": [{"name": name, "version": version} for name, version, _ in parts]}


def _digest(document: AnyDocument | None) -> str:
    return "" if document is None else sha256(canonical_json(document.model_dump(exclude_unset=True))).hex()[:16]

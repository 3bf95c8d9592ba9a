"""Helpers for tests: states that documents lead to, without a program."""

from __future__ import annotations

from typing import Any

from relay.control.documents.reading import read
from relay.control.ledger.begin import Rules, Terms
from relay.control.ledger.catalog import PackageVersion
from relay.control.ledger.draft import Draft
from relay.control.ledger.revise import revise
from relay.control.ledger.state import State
from relay.control.rollouts.rollout import Rollout, RolloutState
from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.reading import AnyDocument

NEEDS = "  approval: {required: true, needed: 1, four_eyes: true}\n"
Known = tuple[tuple[str, str], ...]
"""(region, agent id)."""
ONE_AGENT: Known = (("eu", "x"),)


def terms(known: Known = (), **rules: Any) -> Terms:
    """Terms for both kinds of assignments; every rollout targets all known agents."""
    made = Rules(**rules)
    return Terms({CONFIG: made, PACKAGES: made}, lambda rollout, state: known)


def documents(*texts: str) -> list[AnyDocument]:
    return [document for _, document in read([("test", "".join(texts))])]


def draft(state: State, *texts: str, on: Terms | None = None, by: str = "ann", now_ms: int = 1) -> Draft:
    """The draft that applying documents leads to."""
    return revise(state, state.catalog.put(*documents(*texts)), on or terms(), by=by, now_ms=now_ms)


def applied(state: State, *texts: str, on: Terms | None = None, by: str = "ann", now_ms: int = 1) -> State:
    """The state after documents were applied."""
    return draft(state, *texts, on=on, by=by, now_ms=now_ms).change(None).state


def with_package(state: State, version: str = "1", yanked: str = "", on: Terms | None = None) -> State:
    """The state after a package was pushed, or yanked."""
    package = PublishedPackage(name="otelcol", version=version, files=[PackageFile(sha256="1" * 64, size=3)])
    catalog = state.catalog.put_packages(PackageVersion(package, 1, "ann", yanked))
    return revise(state, catalog, on or terms(), by="ann", now_ms=1).change(None).state


def waiting(state: State, name: str = "a") -> Rollout:
    """The pending rollout of an assignment."""
    found = state.assignments[name].pending
    assert found is not None
    return found


def latest(state: State, name: str = "a") -> Rollout:
    """The running or latest rollout of an assignment."""
    found = state.assignments[name].rollout
    assert found is not None
    return found


def shown(state: State, name: str = "a") -> tuple[str, RolloutState]:
    """(name, state) of the newest rollout that was not rejected."""
    held = state.assignments[name]
    newest = held.pending or held.rollout
    assert newest is not None
    return newest.name, newest.state

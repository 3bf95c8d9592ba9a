"""The state as database rows: loads all of it at the start, and stores the differences of each change."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.ledger import access_rows, key_rows, versions
from relay.control.ledger.catalog import Catalog, PackageVersion
from relay.control.ledger.change import Change
from relay.control.ledger.differences import differences
from relay.control.ledger.state import State
from relay.control.rollouts.assignment import AssignmentState
from relay.control.rollouts.rollout import Rollout
from relay.control.storage import schema
from relay.control.storage.rows import remove, replace
from relay.control.storage.schema import EPOCH, FIRST_EPOCH
from relay.control.storage.sealed import read_all, read_undamaged
from relay.documents import canonical_json
from relay.errors import StoreError
from relay.policy.kinds import KINDS
from relay.policy.packages import PublishedPackage
from relay.policy.reading import MODELS, AnyDocument
from relay.policy.resources import is_named_for

# ---- reading


async def load(connection: AsyncConnection) -> State:
    """Load the stored state.

    Raises:
        StoreError: it is damaged.
    """
    catalog = Catalog().put(*[_document(row) for row in await read_undamaged(connection, schema.documents)])
    catalog = catalog.put_packages(*[_package(row) for row in await read_undamaged(connection, schema.packages)])
    contents = await read_undamaged(connection, schema.contents)
    assignments, gone = await _assignments(connection, catalog)
    # A digest proves that a value is unaltered, but not that it is stored under its own name.
    if misplaced := sorted(f"contents: {row.name}" for row in contents if not is_named_for(row.name, row.payload)):
        raise _damaged(misplaced)
    prefetches: dict[str, frozenset[str]] = {}
    for row in (await connection.execute(sa.select(schema.prefetches))).all():
        prefetches[row.region] = prefetches.get(row.region, frozenset()) | {row.sha256}
    payloads = {row.name: row.payload for row in contents}
    access = await access_rows.load(connection)
    keys = await key_rows.load(connection)
    return State(catalog, assignments, gone, payloads, prefetches, await _epoch(connection), **access, keys=keys)


def _document(row: Any) -> AnyDocument:
    try:
        document: AnyDocument = MODELS[row.kind].model_validate(json.loads(row.body))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{row.kind} {row.key} in the database cannot be read: {error}") from error
    if (document.kind, document.key) != (row.kind, row.key):
        raise _damaged([f"documents: {row.kind} {row.key} holds {document.kind} {document.key}: it"])
    return document


def _package(row: Any) -> PackageVersion:
    package = PublishedPackage.model_validate(json.loads(row.body))
    if package.key != f"{row.name}@{row.version}":
        raise _damaged([f"packages: {row.name} {row.version} holds {package.key}: it"])
    return PackageVersion(package, row.created_ms, row.created_by, row.yanked)


async def _assignments(
    connection: AsyncConnection, catalog: Catalog
) -> tuple[dict[str, AssignmentState], dict[str, tuple[int, int]]]:
    rows = await read_undamaged(connection, schema.assignments)
    bodies, damaged = await read_all(connection, schema.rollouts)
    rollouts = {row.name: Rollout.from_plain(json.loads(row.body)) for row in bodies}
    kind_of = {a.key: a.kind for a in catalog.all_assignments()}
    states: dict[str, AssignmentState] = {}
    gone: dict[str, tuple[int, int]] = {}
    for row in rows:
        body = json.loads(row.body)
        if unreadable := {body.get("rollout"), body.get("pending"), *body.get("layers", ())} & set(damaged):
            raise _damaged([f"rollouts: {', '.join(map(str, unreadable))}"])
        if row.name not in kind_of:
            gone[row.name] = (body["number"], body["retry"])
            continue
        states[row.name] = AssignmentState.from_plain(row.name, kind_of[row.name], body, rollouts)
    if misplaced := [
        *(f"assignments: {name}" for name in kind_of.keys() - states.keys()),
        *(f"rollouts: {name}" for name, rollout in rollouts.items() if rollout.name != name),
    ]:
        raise _damaged(sorted(misplaced))
    return states, gone


async def _epoch(connection: AsyncConnection) -> int:
    """The stored epoch, or the highest epoch of a published manifest if that is later."""
    facts = await read_undamaged(connection, schema.facts, schema.facts.c.name == EPOCH)
    epochs = [int(json.loads(row.body)["epoch"]) for row in await read_undamaged(connection, schema.manifests)]
    return max([int(row.value) for row in facts] + epochs, default=FIRST_EPOCH)


def _damaged(what: list[str]) -> StoreError:
    return StoreError(f"table {', '.join(what[:5])} is damaged: restore a backup")


# ---- writing


async def store(connection: AsyncConnection, before: State, change: Change[Any], by: str, now_ms: int) -> None:
    """Store the differences that a change makes, in the caller's transaction."""
    after = change.state
    await _store_documents(connection, before.catalog, after.catalog, by, now_ms)
    await _store_packages(connection, before, after)
    await _store_assignments(connection, before, after)
    await replace(connection, schema.rollouts, [_rollout_row(step.after) for step in change.steps])
    fresh, dropped = differences(before.contents, after.contents)
    await replace(connection, schema.contents, [{"name": name, "payload": fresh[name]} for name in fresh])
    await remove(connection, schema.contents, [{"name": name} for name in dropped])
    await access_rows.store(connection, before, after)
    await key_rows.store(connection, before.keys, after.keys)
    if after.epoch != before.epoch:
        await replace(connection, schema.facts, [{"name": EPOCH, "value": str(after.epoch)}])
    for removal in change.removals:
        await remove(connection, removal.table, removal.keys)


async def _store_documents(connection: AsyncConnection, before: Catalog, after: Catalog, by: str, now_ms: int) -> None:
    changed: list[dict[str, Any]] = []
    deleted: list[dict[str, Any]] = []
    for kind in KINDS:
        fresh, dropped = differences(before.of(kind), after.of(kind))
        changed += [
            {
                "kind": kind,
                "key": key,
                "body": canonical_json(document.model_dump(exclude_unset=True)).decode(),
                "updated_ms": now_ms,
            }
            for key, document in fresh.items()
        ]
        deleted += [{"kind": kind, "key": key} for key in dropped]
    await replace(connection, schema.documents, changed)
    await remove(connection, schema.documents, deleted)
    await versions.add(connection, [*changed, *deleted], by, now_ms)


async def _store_packages(connection: AsyncConnection, before: State, after: State) -> None:
    fresh, dropped = differences(before.catalog.packages, after.catalog.packages)
    rows = [
        {
            "name": version.package.name,
            "version": version.package.version,
            "body": canonical_json(version.package.model_dump()).decode(),
            "created_ms": version.created_ms,
            "created_by": version.created_by,
            "yanked": version.yanked,
        }
        for version in fresh.values()
    ]
    await replace(connection, schema.packages, rows)
    removed = (before.catalog.packages[key].package for key in dropped)
    await remove(connection, schema.packages, [{"name": p.name, "version": p.version} for p in removed])
    changed, emptied = differences(before.prefetches, after.prefetches)
    for region in {*changed, *emptied}:
        old, new = (state.prefetches.get(region, frozenset()) for state in (before, after))
        await replace(connection, schema.prefetches, [{"region": region, "sha256": file} for file in new - old])
        await remove(connection, schema.prefetches, [{"region": region, "sha256": file} for file in old - new])


async def _store_assignments(connection: AsyncConnection, before: State, after: State) -> None:
    fresh, _ = differences(before.assignments, after.assignments)
    rows = [{"name": s.name, "body": canonical_json(s.plain()).decode()} for s in fresh.values()]
    rows += [
        {"name": name, "body": canonical_json({"number": number, "retry": retry}).decode()}
        for name, (number, retry) in after.deleted_assignments.items()
        if name not in before.deleted_assignments
    ]
    await replace(connection, schema.assignments, rows)


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "name": rollout.name,
        "assignment": rollout.assignment,
        "created_ms": rollout.created_ms,
        "body": canonical_json(rollout.plain()).decode(),
    }

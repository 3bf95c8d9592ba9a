"""What goes with an apply, or by a delete: documents, but not from under agents that nothing else would match."""

from __future__ import annotations

from typing import Any, NamedTuple

from relay.cli.client import Api, RefusedByServer
from relay.policy.kinds import KINDS

_USERS_FIRST = [kind.plural for kind in reversed(KINDS.values())]
_NOT_FOUND, _CONFLICT = 404, 409


class Doomed(NamedTuple):
    """A document that is to be deleted."""

    plural: str
    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"


def doomed(api: Api, given: list[dict[str, Any]], labels: list[tuple[str, str]]) -> list[Doomed]:
    """Documents that carry all labels and were not given."""
    kept = {(item["kind"], item["name"]) for item in given}
    return [
        Doomed(plural, document["kind"], _key(document))
        for plural in _USERS_FIRST
        for document in api.get("documents", plural)
        if set(labels) <= document["metadata"].get("labels", {}).items()
        and (document["kind"], _key(document)) not in kept
    ]


def orphaned(api: Api, document: Doomed) -> str:
    """What would become of agents without a document; empty where they would match something else."""
    if not document.kind.endswith("Assignment"):
        return ""
    try:
        orphans = api.get("documents", document.plural, document.key, "orphans")["agents"]
    except RefusedByServer as error:
        if error.status != _NOT_FOUND:
            raise
        return ""
    agents = f"{orphans} agents" if orphans > 1 else "1 agent"
    return (
        f"{document}: without it {agents} would no longer match anything, and would keep their configuration"
        if orphans
        else ""
    )


def spare(api: Api, documents: list[Doomed]) -> None:
    """End the command where agents would match nothing any more without one of these."""
    if reasons := [reason for document in documents if (reason := orphaned(api, document))]:
        raise RefusedByServer(_CONFLICT, [f"{reason}; --yes deletes it" for reason in reasons])


def delete(api: Api, document: Doomed) -> str:
    """Delete a document. Gives why it is still there, where something uses it; empty where it is gone."""
    try:
        api.delete("documents", document.plural, document.key)
    except RefusedByServer as error:
        if error.status != _CONFLICT:
            raise
        return "; ".join(error.lines)
    return ""


def _key(document: dict[str, Any]) -> str:
    metadata = document["metadata"]
    return (
        f"{metadata['name']}@{metadata['version']}" if document["kind"] == "ConfigTemplate" else str(metadata["name"])
    )

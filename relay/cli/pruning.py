"""Deletion of documents by `apply --prune` and `delete`, guarding agents that would then match nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

from relay.cli.client import Api, RefusedByServer
from relay.policy.kinds import KINDS

_DEPENDENTS_FIRST = [kind.plural for kind in reversed(KINDS.values())]
_NOT_FOUND, _CONFLICT = 404, 409


class DocumentRef(NamedTuple):
    """A document to delete."""

    plural: str
    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"


def prunable(api: Api, applied: list[dict[str, Any]], labels: list[tuple[str, str]]) -> list[DocumentRef]:
    """Documents on the server that carry all labels and are not among the applied ones."""
    keep = {(item["kind"], item["name"]) for item in applied}
    return [
        DocumentRef(plural, document["kind"], _key(document))
        for plural in _DEPENDENTS_FIRST
        for document in api.get("documents", plural)
        if set(labels) <= document["metadata"].get("labels", {}).items()
        and (document["kind"], _key(document)) not in keep
    ]


def orphan_warning(api: Api, document: DocumentRef) -> str:
    """Say how many agents would match nothing without a document; empty if there are none."""
    if not document.kind.endswith("Assignment"):
        return ""
    try:
        orphans = api.get("documents", document.plural, document.key, "orphans")["agents"]
    except RefusedByServer as error:
        if error.status != _NOT_FOUND:
            raise
        return ""
    if not orphans:
        return ""
    if orphans == 1:
        return f"{document}: without it 1 agent would match nothing, and would keep its configuration"
    return f"{document}: without it {orphans} agents would match nothing, and would keep their configuration"


def refuse_orphaning(api: Api, documents: list[DocumentRef]) -> None:
    """End the command if deleting any of the documents would leave agents that match nothing."""
    if reasons := [reason for document in documents if (reason := orphan_warning(api, document))]:
        raise RefusedByServer(_CONFLICT, [f"{reason}; use --yes to delete it anyway" for reason in reasons])


def delete(api: Api, document: DocumentRef) -> str:
    """Delete a document. Return why it cannot be deleted if something uses it; empty on success."""
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

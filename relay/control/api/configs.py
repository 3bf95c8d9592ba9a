"""Routes of configs: what a hash stands for, and which agents drift from their assignment."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from relay.control.api.caller import Actor, Reveal, is_masked
from relay.control.api.models import ConfigAnswer, DriftEntry, answers
from relay.control.api.pages import Limit, as_json, behind, in_slices
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_everywhere
from relay.control.regions.archive import Archive
from relay.control.review.changes import Changes
from relay.control.review.drift import drift
from relay.documents import canonical_json, parse
from relay.errors import NotFound
from relay.policy.mask import Mask


def add_config_routes(api: FastAPI, archive: Archive, changes: Changes, fleet: Fleet, ledger: Ledger) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/drift", **answers(list[DriftEntry], "documents"))
    async def list_drift(
        actor: Actor,
        limit: Limit = None,
        after: Annotated[str, Query(description="the last agent of the page before")] = "",
    ) -> StreamingResponse:
        """Agents that assignments observe, and how their configs differ."""
        found = await drift(fleet, ledger.state, actor.grants)
        rows = behind(found, after, lambda row: str(row["agent"]))[:limit]
        if actor.grants is not None:
            mask = Mask()
            rows = [{**row, "differences": [_difference(d, mask) for d in row["differences"]]} for row in rows]
        return StreamingResponse(as_json(in_slices(rows)), media_type="application/json")

    @api.get("/api/v1/configs/{config_hash}", **answers(ConfigAnswer, "rollouts"))
    async def get_config(config_hash: str, actor: Actor, reveal: Reveal = False) -> dict[str, Any]:
        """What a hash stands for: a config or content by slot, a revision by region, or a document."""
        masked = is_masked(actor, reveal)
        if not masked:
            check_everywhere(actor, "revealing a config by its hash")
        try:
            found = await archive.get(config_hash)
        except NotFound as error:
            if not re.fullmatch("[0-9a-f]{8,64}", config_hash):
                raise
            try:
                found = await changes.resolve_hash(config_hash)
            except NotFound:
                raise error from None
        return await asyncio.to_thread(_masked, found) if masked else found


def _difference(difference: dict[str, Any], mask: Mask) -> dict[str, Any]:
    last = str(difference["path"]).rpartition(".")[2]
    return {
        "path": difference["path"],
        **{side: mask.tree({last: difference[side]})[last] for side in ("wanted", "found")},
    }


def _masked(found: dict[str, Any]) -> dict[str, Any]:
    """The same with its secrets masked, a document as what it is."""
    mask = Mask()
    slots = {}
    for slot, item in found["slots"].items():
        document = parse(item["body"], "document")[0].value if found["kind"] == "document" else None
        if isinstance(document, dict) and isinstance(document.get("spec"), dict):
            body = canonical_json({**document, "spec": mask.document(document["spec"])}).decode()
        else:
            body = mask.text(item["body"], item["content_type"])
        slots[slot] = {**item, "body": body}
    return {**found, "slots": slots}

"""Helpers for tests: apply documents and look at the outcome."""

from __future__ import annotations

import pytest

from relay.control.app import ControlPlane
from relay.errors import Refused


async def refused(plane: ControlPlane, *texts: str) -> list[str]:
    before = plane.ledger.state.catalog
    with pytest.raises(Refused) as caught:
        await plane.documents.apply([("f.yaml", "".join(texts))])
    assert plane.ledger.state.catalog == before, "all or nothing"
    return [str(p) for p in caught.value.problems]


async def actions(plane: ControlPlane, *texts: str, dry_run: bool = False) -> list[str]:
    return [a.action for a in (await plane.documents.apply([("f.yaml", "".join(texts))], dry_run=dry_run)).applied]

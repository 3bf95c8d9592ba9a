from __future__ import annotations

import pytest

from relay.control.ledger import versions
from relay.control.ledger.versions import Versions
from relay.control.storage.database import Database
from relay.errors import NotFound
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.actors import ANN


async def test_all_generations_of_a_document_are_available(programs: Programs) -> None:
    plane = await programs.opened()
    await apply(plane, TEMPLATE, assignment("a", rate=1))
    await apply(plane, assignment("a", rate=2))
    await apply(plane, assignment("a", rate=2))
    await plane.documents.delete("ConfigAssignment", "a", actor=ANN)
    await apply(plane, assignment("a", rate=3))
    reader = Versions(plane.database)
    listed = await reader.listing("ConfigAssignment", "a")
    assert [(v["generation"], v["deleted"]) for v in listed] == [(1, False), (2, False), (3, True), (4, False)]
    assert listed[2]["actor"] == "ann"
    rates = [(await reader.get("ConfigAssignment", "a", n))["spec"]["values"]["rate"] for n in (1, 2, 4)]
    assert rates == [1, 2, 3]
    with pytest.raises(NotFound, match="generation 3 deleted ConfigAssignment a"):
        await reader.get("ConfigAssignment", "a", 3)
    with pytest.raises(NotFound, match="no generation 9; it has 1 to 4"):
        await reader.get("ConfigAssignment", "a", 9)
    with pytest.raises(NotFound, match="never been"):
        await reader.listing("ConfigAssignment", "b")
    found = await reader.by_digest(listed[1]["document_digest"])
    assert found is not None
    assert found[1] == "ConfigAssignment/a@2"
    assert await reader.by_digest("0" * 16) is None
    assert [b["spec"]["values"]["rate"] for b in await reader.bodies("ConfigAssignment", "a")] == [3, 2, 1]
    digests = {e["after"] for e in await plane.audit.listing(subject="ConfigAssignment/a") if e["action"] == "apply"}
    assert {v["document_digest"] for v in listed if not v["deleted"]} == digests


async def test_unchanged_document_makes_no_generation(database: Database) -> None:
    async with database.write() as connection:
        await versions.add(connection, [], "ann", 1)
    assert await Versions(database).bodies("ConfigAssignment", "a") == []

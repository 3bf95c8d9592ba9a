"""Apply: its checks, and that it is all or nothing."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from relay.control.app import ControlPlane
from relay.control.storage import schema
from relay.errors import StoreError
from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.documents.applying import actions, refused
from tests.control.texts import IN_USE, variables


async def test_apply_reports_created_unchanged_and_configured(plane: ControlPlane) -> None:
    assert await actions(plane, TEMPLATE, assignment("a"), dry_run=True) == ["created", "created"]
    assert await actions(plane, TEMPLATE, assignment("a")) == ["created", "created"]
    assert await actions(plane, TEMPLATE, assignment("a", rate=2)) == ["unchanged", "configured"]
    assert [d["metadata"]["name"] for d in plane.documents.listing("ConfigAssignment")] == ["a"]
    assert plane.documents.get("ConfigTemplate", "basic@v1")["metadata"]["version"] == "v1"


async def test_two_applies_at_once_lose_nothing(plane: ControlPlane) -> None:
    await actions(plane, TEMPLATE)
    one = plane.documents.apply([("1", assignment("a"))])
    two = plane.documents.apply([("2", assignment("b", priority=1))])
    await asyncio.gather(one, two)
    assert set(plane.ledger.state.catalog.assignments) == {"a", "b"}
    resources = (await plane.publisher.policy("eu")).resources
    assert {"ConfigAssignment/a", "ConfigAssignment/b"} <= resources.keys()


async def test_template_version_is_immutable(plane: ControlPlane) -> None:
    await actions(plane, TEMPLATE)
    (problem,) = await refused(plane, TEMPLATE.replace('rate: "', 'rate2: "'))
    assert "basic@v1 already exists with different content" in problem


async def test_refusal_names_all_problems_and_changes_nothing(plane: ControlPlane) -> None:
    problems = await refused(
        plane, TEMPLATE, assignment("a", rate=1000), assignment("b", version="v9"), "---\nkind: Nonsense\n"
    )
    assert len(problems) == 1
    assert "Nonsense" in problems[0]
    problems = await refused(plane, TEMPLATE, assignment("a", rate=1000), assignment("b", version="v9", priority=1))
    assert [p.split(": ", 1)[1] for p in problems] == [
        "spec.values.rate: 1000 is greater than the maximum, 100",
        "spec.template: there is no ConfigTemplate basic@v9; did you mean basic@v1?",
    ]
    assert problems[0].startswith("f.yaml:18: ")


async def test_duplicate_document_is_refused(plane: ControlPlane) -> None:
    (problem,) = await refused(plane, TEMPLATE, assignment("a"), assignment("a"))
    assert "ConfigAssignment a is defined twice; first at f.yaml:" in problem


async def test_empty_and_oversized_files_are_refused(plane: ControlPlane) -> None:
    assert await refused(plane, "# nothing\n") == ["f.yaml: contains no documents"]
    assert "is more than the maximum, " in (await refused(plane, "x" * (1 << 21)))[0]


async def test_placeholder_problems_name_their_line(plane: ControlPlane) -> None:
    (problem,) = await refused(plane, TEMPLATE.replace("{{.level}}", "{{.levle}}"))
    assert problem == "f.yaml:10: spec.config.service.telemetry.logs.level: variable levle is not declared"


async def test_unreadable_stored_document_is_named_at_startup(programs: Programs) -> None:
    plane = await programs.opened()
    await actions(plane, TEMPLATE)
    async with plane.database.write() as connection:
        await connection.execute(sa.update(schema.documents).values(body="{"))
    await programs.stop(plane)
    with pytest.raises(StoreError, match="ConfigTemplate basic@v1 in the database cannot be read"):
        await programs.opened()


async def test_documents_survive_a_restart(programs: Programs, plane: ControlPlane) -> None:
    await actions(plane, *IN_USE)
    await actions(plane, variables("eu", "{where: y}"))
    before = (plane.ledger.state.catalog, await plane.publisher.policy("eu"))
    await programs.stop(plane)
    again = await programs.opened()
    assert again.ledger.state.catalog == before[0]
    assert await again.publisher.policy("eu") == before[1], "the same manifest under the same number"

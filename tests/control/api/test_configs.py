from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.api.client import started


async def test_config_lookup_and_drift(programs: Programs) -> None:
    plane, client = await started(programs)
    await apply(plane, TEMPLATE, assignment("a"))
    status = await plane.status.of("a-1")
    code, found = await client.call("GET", f"/api/v1/configs/{status['candidate']}")
    assert isinstance(found, dict)
    assert (code, found["kind"], found["name"]) == (200, "revision", "basic@v1 of a-1")
    for wrong in ("0" * 12, "nonsense"):
        code, problem = await client.call("GET", f"/api/v1/configs/{wrong}")
        assert isinstance(problem, dict)
        assert (code, wrong in problem["detail"]) == (404, True)
    assert await client.call("GET", "/api/v1/drift") == (200, [])

from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import body, started


async def test_actor_defaults_to_anonymous(programs: Programs) -> None:
    plane, client = await started(programs)
    await client.call("POST", "/api/v1/apply", json=body(TEMPLATE))
    await client.call("POST", "/api/v1/apply", json=body(assignment("a")), headers={"X-OpAMP-Actor": "ann"})
    assert [entry["actor"] for entry in await plane.audit.listing()] == ["anonymous", "ann", "ann"]
    for wrong in ("a" * 300, "", "名前"):
        headers = {"X-OpAMP-Actor": wrong}
        assert (await client.call("POST", "/api/v1/apply", json=body(TEMPLATE), headers=headers))[0] == 422, wrong

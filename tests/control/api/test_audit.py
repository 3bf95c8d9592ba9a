from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import body, started


async def test_audit_is_filtered_by_subject_and_time_and_paged(programs: Programs) -> None:
    _, client = await started(programs)
    for rate in (1, 2, 3):
        await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a", rate=rate)))

    async def numbers(query: str) -> list[int]:
        status, answer = await client.call("GET", f"/api/v1/audit{query}")
        assert (status, isinstance(answer, list)) == (200, True), answer
        assert isinstance(answer, list)
        return [entry["number"] for entry in answer]

    every = await numbers("")
    assert every == sorted(every)
    assert await numbers("?limit=2") == every[-2:]
    assert await numbers(f"?limit=2&after={every[0]}") == every[1:3]
    assert len(await numbers("?subject=ConfigAssignment/a")) == 3
    assert len(await numbers("?subject=ConfigTemplate")) == 1
    assert await numbers("?until_ms=1") == []
    assert await numbers("?since_ms=1") == every
    status, entry = await client.call("GET", f"/api/v1/audit/{every[0]}")
    assert isinstance(entry, dict)
    assert (status, entry["number"]) == (200, every[0])
    assert (await client.call("GET", "/api/v1/audit/999"))[0] == 404
    for beyond in (f"/{1 << 63}", f"?after={1 << 63}"):
        assert (await client.call("GET", f"/api/v1/audit{beyond}"))[0] == 422


async def test_lists_are_paged(programs: Programs) -> None:
    _, client = await started(programs)
    for rate in (1, 2, 3):
        await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a", rate=rate)))
    await client.call("POST", "/api/v1/apply", json=body(assignment("b", priority=1)))
    for path, names in {
        "rollouts?limit=1": ["a-3"],
        "rollouts?after=a-3": ["b-1"],
        "assignments/a/history?after=a-1&limit=1": ["a-2"],
    }.items():
        _, answer = await client.call("GET", f"/api/v1/{path}")
        assert isinstance(answer, list)
        assert [item["name"] for item in answer] == names, path
    assert (await client.call("GET", "/api/v1/rollouts?after=c-1"))[0] == 404
    _, documents = await client.call("GET", "/api/v1/documents/assignments?after=a")
    assert isinstance(documents, list)
    assert [d["metadata"]["name"] for d in documents] == ["b"]

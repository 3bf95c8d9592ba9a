from __future__ import annotations

from typing import Any

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import Client, body, started
from tests.control.texts import TWO_STAGES, staged


async def post(client: Client, path: str, actor: str = "", **content: Any) -> tuple[int, Any]:
    headers = {"X-OpAMP-Actor": actor} if actor else {}
    return await client.call("POST", f"/api/v1/{path}", json=content, headers=headers)


async def test_rollouts_over_http(programs: Programs) -> None:
    _, client = await started(programs)
    await client.call(
        "POST", "/api/v1/apply", json=body(TEMPLATE, TWO_STAGES, assignment("a")), headers={"X-OpAMP-Actor": "ann"}
    )
    await client.call("POST", "/api/v1/apply", json=body(staged(2)), headers={"X-OpAMP-Actor": "ann"})
    _, listed = await client.call("GET", "/api/v1/rollouts")
    assert isinstance(listed, list)
    assert [(r["name"], r["created_by"]) for r in listed] == [("a-2", "ann")]
    assert (await client.call("GET", "/api/v1/rollouts/a-1"))[0] == 200
    assert (await client.call("GET", "/api/v1/rollouts/a-7"))[0] == 404
    assert (await post(client, "rollouts/a-2/pause", "bob", reason="lunch"))[1]["reason"] == "lunch"
    status, problem = await post(client, "rollouts/a-2/pause")
    assert (status, problem["detail"]) == (409, "a-2 is paused; it cannot be paused")
    assert (await post(client, "rollouts/a-2/resume"))[0] == 200
    assert (await post(client, "rollouts/a-2/explode"))[0] == 422
    assert (await post(client, "rollouts/a-2/approve", digest="0" * 64))[0] == 409
    assert (await post(client, "rollouts/a-2/promote", stage=1))[0] == 409
    assert (await post(client, "rollouts/a-2/abort", "bob"))[1]["state"] == "aborted"
    assert (await post(client, "rollouts/a-2/retry", "bob"))[1]["name"] == "a-3"
    _, history = await client.call("GET", "/api/v1/assignments/a/history")
    assert isinstance(history, list)
    assert [r["name"] for r in history] == ["a-1", "a-2", "a-3"]
    assert (await client.call("GET", "/api/v1/assignments/b/history"))[0] == 404
    _, entries = await client.call("GET", "/api/v1/audit?actor=bob")
    assert isinstance(entries, list)
    assert [e["action"] for e in entries] == ["pause", "abort", "retry"]
    _, verified = await client.call("GET", "/api/v1/audit/verify")
    assert isinstance(verified, dict)
    assert verified["ok"]

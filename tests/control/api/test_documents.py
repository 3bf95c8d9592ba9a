from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import body, started


async def test_document_endpoints(programs: Programs) -> None:
    _, client = await started(programs)
    status, answer = await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a")))
    assert status == 200
    assert isinstance(answer, dict)
    assert [d["action"] for d in answer["documents"]] == ["created", "created"]
    status, listed = await client.call("GET", "/api/v1/documents/assignments")
    assert isinstance(listed, list)
    assert [d["metadata"]["name"] for d in listed] == ["a"]
    assert (await client.call("GET", "/api/v1/documents/templates/basic@v1"))[0] == 200
    assert (await client.call("GET", "/api/v1/documents/templates/none@v1"))[0] == 404
    assert (await client.call("GET", "/api/v1/documents/nonsense"))[0] == 404
    assert (await client.call("DELETE", "/api/v1/documents/templates/basic@v1"))[0] == 409
    assert (await client.call("DELETE", "/api/v1/documents/assignments/a"))[0] == 200

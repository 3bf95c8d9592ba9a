from __future__ import annotations

import asyncio
import io

import aiohttp
import pytest

from tests.conftest import Programs
from tests.control.api.client import started
from tests.control.api.people import guarded, person


async def test_cross_site_requests_cannot_write(programs: Programs) -> None:
    _, client = await started(programs)
    form = {"Content-Type": "text/plain"}
    assert (await client.call("POST", "/api/v1/apply", data="{}", headers=form))[0] == 415
    assert (await client.call("GET", "/api/v1/agents", headers={"Host": "evil.example:4340"}))[0] == 403
    assert (
        await client.call(
            "POST", "/api/v1/apply", data=io.BytesIO(b"x" * (17 << 20)), headers={"Content-Type": "application/json"}
        )
    )[0] == 413


async def test_body_without_content_length_is_refused(programs: Programs) -> None:
    _, client = await started(programs)
    port = int(client.url.rpartition(":")[2])
    for extra in ("Transfer-Encoding: chunked\r\n", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /api/v1/apply HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{extra}\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 411")
        writer.close()
        await writer.wait_closed()


async def test_unknown_query_parameters_are_refused(programs: Programs) -> None:
    _, client = await started(programs)
    for query, said in (("nonsense=1", "unknown parameter"), ("region=a&region=b", "is given more than once")):
        status, answer = await client.call("GET", f"/api/v1/agents?{query}")
        assert isinstance(answer, dict)
        assert (status, said in answer["problems"][0]["reason"]) == (422, True)


async def test_answer_breaks_off_when_its_credential_ends(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    plane, client = await guarded(programs)
    admin = await person(plane, client, "admin")
    assert await admin.status("GET", "agents") == 200
    monkeypatch.setattr(plane.people, "is_current", lambda _: False)
    with pytest.raises(aiohttp.ClientError):
        await admin.call("GET", "agents")
    assert await admin.status("POST", "diff", json={"sources": []}) == 422, "only answers to GET are long"

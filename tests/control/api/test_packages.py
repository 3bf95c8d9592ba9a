from __future__ import annotations

from typing import Any

from tests.conftest import Programs, apply, eventually
from tests.control.api.client import Client, started
from tests.packages import PackageAgent, digest, download, package_assignment

CONTENT = bytes(range(256)) * 1000


async def patch(client: Client, sha256: str, offset: int, content: bytes) -> tuple[int, Any]:
    headers = {"Content-Type": "application/octet-stream"}
    return await client.call("PATCH", f"/api/v1/uploads/{sha256}?offset={offset}", data=content, headers=headers)


async def push(client: Client, content: bytes, **more: Any) -> tuple[int, Any]:
    sha256 = digest(content)
    for offset in range(0, len(content), 100_000):
        await patch(client, sha256, offset, content[offset : offset + 100_000])
    body = {"name": "otelcol", "version": "1", "sha256": sha256, "size": len(content), **more}
    return await client.call("POST", "/api/v1/packages", json=body, headers={"X-OpAMP-Actor": "ann"})


async def test_upload_resumes_and_becomes_a_version(programs: Programs) -> None:
    _, client = await started(programs)
    sha256 = digest(CONTENT)
    assert (await patch(client, sha256, 0, CONTENT[:1000]))[1] == {"offset": 1000, "complete": False}
    status, problem = await patch(client, sha256, 5, b"x")
    assert (status, problem["detail"]) == (409, "the upload continues at byte 1000, not 5")
    assert (await client.call("GET", f"/api/v1/uploads/{sha256}"))[1] == {"offset": 1000, "complete": False}
    await patch(client, sha256, 1000, CONTENT[1000:])
    _, answer = await push(client, CONTENT)
    assert (answer["action"], answer["created_by"], answer["bytes"]) == ("created", "ann", len(CONTENT))
    assert (await push(client, CONTENT))[1]["action"] == "unchanged"
    assert (await push(client, b"other"))[0] == 409
    assert (await client.call("GET", f"/api/v1/uploads/{sha256}"))[1] == {"offset": len(CONTENT), "complete": True}
    assert (await download(f"{client.url}/api/v1/blobs/{sha256}"))[:2] == (200, CONTENT)
    assert (await client.call("GET", f"/api/v1/blobs/{'0' * 64}"))[0] == 404
    assert (await client.call("GET", "/api/v1/packages/otelcol/1"))[0] == 200
    assert (await client.call("GET", "/api/v1/packages/otelcol/2"))[0] == 404


async def test_invalid_packages_are_refused(programs: Programs) -> None:
    _, client = await started(programs)
    assert (await client.call("PATCH", f"/api/v1/uploads/{'0' * 64}?offset=0", json={}))[0] == 415
    assert (await client.call("GET", "/api/v1/uploads/..%2f..%2fetc"))[0] in (404, 422)
    for wrong in (
        {"name": "../x"}, {"name": "n" * 300}, {"name": "a\x00b"}, {"version": "a/b"}, {"size": -1},
        {"sha256": "x"}, {"signature": "zz"}, {"type": "other"}, {"attributes": {"a": [1]}},
        {"attributes": {"a": "x" * 300}}, {"attributes": {"a": "\ud800"}}, {"unknown": 1},
    ):  # fmt: skip
        assert (await push(client, b"x", **wrong))[0] == 422, wrong
    assert (await push(client, b"x", signature="00" * 64, key="release"))[0] == 422


async def test_yank_prefetch_and_delete(programs: Programs) -> None:
    _, client = await started(programs)
    await push(client, CONTENT)
    nobody = await client.call("POST", "/api/v1/packages/otelcol/1/prefetch", json={})
    assert nobody[0] == 409
    told = await client.call("POST", "/api/v1/packages/otelcol/1/prefetch", json={"regions": ["eu"]})
    assert told == (200, {"name": "otelcol", "version": "1", "regions": ["eu"], "unknown": ["eu"]})
    _, yanked = await client.call("POST", "/api/v1/packages/otelcol/1/yank", json={"reason": "CVE"})
    assert isinstance(yanked, dict)
    assert yanked["yanked"] == "CVE"
    assert (await client.call("DELETE", "/api/v1/packages/otelcol/1"))[0] == 200
    assert (await client.call("GET", "/api/v1/packages"))[1] == []


async def test_package_status(programs: Programs) -> None:
    plane, client = await started(programs)
    node = await programs.node(plane.ports["link"])
    await push(client, CONTENT)
    await apply(plane, package_assignment())
    good, bad = [await PackageAgent.join(node, tier=tier) for tier in ("a", "b")]
    await good.install(await good.wait())
    bad.refuses = True
    await bad.install(await bad.wait())

    async def told() -> dict[str, Any] | None:
        _, answer = await client.call("GET", "/api/v1/package-status")
        assert isinstance(answer, dict)
        return answer if len(answer["packages"]) == 1 and answer["agents"] else None

    answer = await eventually(told)
    assert answer["packages"] == [
        {
            "package": "otelcol", "version": "1", "region": "local",
            "installed": 1, "installing": 0, "downloading": 0, "failed": 1,
        }
    ]  # fmt: skip
    (failing,) = answer["agents"]
    assert (failing["agent"], failing["state"], failing["error_message"]) == (bad.agent.name, "failed", "no room")
    _, some = await client.call("GET", "/api/v1/package-status?label=tier=a")
    assert isinstance(some, dict)
    assert some["agents"] == []
    assert (await client.call("GET", "/api/v1/package-status?label=tier"))[0] == 422
    for agent in (good, bad):
        await agent.close()

from __future__ import annotations

from tests.conftest import Programs, eventually
from tests.control.api.client import Client, ask, started
from tests.control.join.joining import with_tls


async def test_join_tokens_and_identities(programs: Programs) -> None:
    plane = await with_tls(programs)
    client = Client(plane.ports["api"])
    status, made = await client.call("POST", "/api/v1/join-tokens", json={"region": "eu"})
    assert isinstance(made, dict)
    assert (status, made["token"].startswith("opampj_"), made["uses"]) == (200, True, 1)
    node = await programs.node(join=made["token"], region="eu")
    await eventually(lambda: node.link.connected)
    _, listed = await client.call("GET", "/api/v1/join-tokens")
    assert isinstance(listed, list)
    assert [(t["id"], t["used_by"], "token" in t) for t in listed] == [(made["id"], ["one"], False)]

    async def identity() -> str:
        _, nodes = await client.call("GET", "/api/v1/nodes")
        return str(nodes[0]["identity"]) if isinstance(nodes, list) and nodes else ""

    assert await eventually(identity) == "verified"
    (shown,) = (await ask(plane, "GET", "/api/v1/nodes"))[1]
    assert set(shown["certificate"]) == {"serial", "not_after"}
    assert abs(shown["clock_skew_s"]) < 5
    _, trust = await client.call("GET", "/api/v1/trust")
    assert isinstance(trust, dict)
    assert (trust["version"], len(trust["roots"]), len(trust["ca"])) == (1, 1, 1)
    assert (await client.call("POST", "/api/v1/nodes/eu/one/revoke", json={"reason": "x"}))[0] == 200
    assert await identity() == "revoked"
    assert (await client.call("POST", "/api/v1/nodes/eu/two/revoke", json={"reason": "x"}))[0] == 404
    assert (await client.call("DELETE", f"/api/v1/join-tokens/{made['id']}"))[0] == 200
    assert (await client.call("DELETE", f"/api/v1/join-tokens/{made['id']}"))[0] == 404
    for wrong in ({}, {"region": "a/b"}, {"region": "eu", "uses": 0}, {"region": "eu", "ttl_s": 1}):
        assert (await client.call("POST", "/api/v1/join-tokens", json=wrong))[0] == 422, wrong


async def test_without_tls_nobody_joins(programs: Programs) -> None:
    _, client = await started(programs)
    assert (await client.call("POST", "/api/v1/join-tokens", json={"region": "eu"}))[0] == 409
    assert (await client.call("POST", "/api/v1/nodes/eu/one/revoke", json={"reason": "x"}))[0] == 409

"""Agents that must authenticate: over real sockets, the same on every transport where it can be."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import grpc
import jwt
import pytest

from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import CloseReason
from tests.auth.builders import SECRET
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.wire import RawSocket, Refused, TestAgent, new_uid

TRANSPORTS = ("websocket", "http", "grpc")
UNAUTHENTICATED = {"websocket": 401, "http": 401, "grpc": grpc.StatusCode.UNAUTHENTICATED}


def token(subject: str = "agent-001", *, secret: bytes = SECRET, lifetime: float = 600, **claims: Any) -> str:
    now = time.time()
    content = {"sub": subject, "iat": now, "exp": now + lifetime, **claims}
    return jwt.encode({name: value for name, value in content.items() if value is not None}, secret, "HS256")


async def node_with_tokens(programs: Programs, *documents: str, **jwt_settings: Any) -> Node:
    """A node that asks agents for tokens, and its policy."""
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET + b"\n")
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, *(documents or (assignment("all"),)))
    node = await programs.node(
        control_plane.ports["link"],
        auth={"type": "jwt", "jwt": {"secret_key_file": str(key), **jwt_settings}},
        identity={"labels_from_attributes": ["tier"]},
    )
    await eventually(lambda: node.policy.accepted)
    return node


async def joined(node: Node, transport: str, name: str, credential: str, **attributes: str) -> tuple[TestAgent, Any]:
    agent = await TestAgent.over(transport, node.ports, name, token=credential)
    return agent, await agent.hello(**attributes)


def rate_of(answer: pb.ServerToAgent) -> bytes:
    return answer.remote_config.config.config_map[""].body.splitlines()[0]


async def get(node: Node, path: str, port: str = "http") -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{node.ports[port]}{path}") as answer:
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, await answer.json() if is_json else await answer.text()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_agent_with_a_token_is_served(programs: Programs, transport: str) -> None:
    node = await node_with_tokens(programs)
    agent, answer = await joined(node, transport, "its-own-word", token(jti="t-1", labels={"team": "a"}))
    assert rate_of(answer) == b"rate: 1"
    record = node.registry.get(agent.uid)
    assert record is not None
    assert record.agent_id == "agent-001", "the token's word, not the agent's"
    assert record.credential is not None
    assert (record.credential.subject, record.credential.id) == ("agent-001", "t-1")
    assert (await agent.heartbeat()).instance_uid == agent.uid
    assert node.metrics.authentications["jwt", "ok"] >= 1
    await agent.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "credential",
    [
        "",
        "x",
        token(secret=b"y" * 32),
        token(lifetime=-120),
        token(exp=None),
        token(""),
        token(labels={"region": "us"}),
    ],
    ids=["none", "malformed", "forged", "expired", "endless", "no-subject", "region-label"],
)
async def test_attack_bad_credential(programs: Programs, transport: str, credential: str) -> None:
    node = await node_with_tokens(programs)
    with pytest.raises(Refused) as caught:
        await joined(node, transport, "a", credential)
    assert caught.value.args[0] == UNAUTHENTICATED[transport]
    assert len(node.registry) == 0
    if transport == "websocket":
        assert b"WWW-Authenticate: Bearer\r\n" in caught.value.args[1]
        assert b"\r\n\r\n" in caught.value.args[1]
    elif transport == "http":
        assert caught.value.args[1]["WWW-Authenticate"] == "Bearer"


async def test_labels_of_the_token_choose_and_win(programs: Programs) -> None:
    node = await node_with_tokens(
        programs,
        assignment("all"),
        assignment("team", rate=2, priority=1, selector="{labels: {team: a}}"),
        assignment("gold", rate=3, priority=2, selector="{labels: {tier: gold}}"),
    )
    _, plain = await joined(node, "websocket", "", token("one"), team="a", tier="silver")
    assert rate_of(plain) == b"rate: 1", "what an agent says of itself is no label"
    _, of_team = await joined(node, "websocket", "", token("two", labels={"team": "a"}))
    assert rate_of(of_team) == b"rate: 2"
    _, trusted = await joined(node, "websocket", "", token("three"), tier="gold")
    assert rate_of(trusted) == b"rate: 3"
    _, both = await joined(node, "websocket", "", token("four", labels={"tier": "lead"}), tier="gold")
    assert rate_of(both) == b"rate: 1", "the credential wins over a trusted attribute"


async def test_agent_id_of_a_shared_token_is_only_its_word(programs: Programs) -> None:
    documents = assignment("all"), assignment("one", rate=9, priority=9, selector="{agent_ids: [agent-001]}")
    node = await node_with_tokens(programs, *documents, agent_id_claim="")
    _, answer = await joined(node, "websocket", "agent-001", token("web"))
    assert rate_of(answer) == b"rate: 1"


async def test_agent_id_of_its_own_token_is_proved(programs: Programs) -> None:
    documents = assignment("all"), assignment("one", rate=9, priority=9, selector="{agent_ids: [agent-001]}")
    node = await node_with_tokens(programs, *documents)
    _, mine = await joined(node, "websocket", "whatever", token("agent-001"))
    assert rate_of(mine) == b"rate: 9"
    _, other = await joined(node, "websocket", "agent-001", token("agent-002"))
    assert rate_of(other) == b"rate: 1"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("is_live", [True, False], ids=["live", "away"])
async def test_attack_uid_of_another_subject(programs: Programs, transport: str, is_live: bool) -> None:
    node = await node_with_tokens(programs)
    victim, answer = await joined(node, transport, "v", token("victim"))
    await victim.applied(answer.remote_config.config_hash)
    if not is_live:
        await victim.close()
    before = node.registry.get(victim.uid)
    assert before is not None
    thief = await TestAgent.over(transport, node.ports, "v", victim.uid, token=token("thief"))
    for message in (await thief.hello(), await thief.report(agent_disconnect=pb.AgentDisconnect())):
        assert message.agent_identification.new_instance_uid not in (b"", victim.uid)
        assert not message.HasField("remote_config")
    record = node.registry.get(victim.uid)
    assert record is before
    assert (record.agent_id, record.config.status) == ("victim", "APPLIED")
    if is_live:
        assert (await victim.heartbeat()).instance_uid == victim.uid
        assert record.connected


async def test_attack_uid_of_another_subject_on_one_http_connection(programs: Programs) -> None:
    node = await node_with_tokens(programs)
    victim, _ = await joined(node, "http", "v", token("victim"))
    # The very bytes of the victim's next heartbeat, with another token.
    following = pb.AgentToServer(instance_uid=victim.uid, sequence_num=1, capabilities=victim.message().capabilities)
    async with aiohttp.ClientSession() as client:
        headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token('thief')}"}
        url = f"http://127.0.0.1:{node.ports['http']}/v1/opamp"
        async with client.post(url, data=following.SerializeToString(), headers=headers) as answer:
            reply = pb.ServerToAgent.FromString(await answer.read())
    assert reply.agent_identification.new_instance_uid
    record = node.registry.get(victim.uid)
    assert record is not None
    assert record.sequence_num == 0


async def test_attack_agent_id_of_another_subject_inherits_nothing(programs: Programs) -> None:
    node = await node_with_tokens(programs, agent_id_claim="")
    first, answer = await joined(node, "websocket", "agent-001", token("web"))
    await first.failed(answer.remote_config.config_hash, "no")
    await first.close()
    record = node.registry.get(first.uid)
    assert record is not None
    await eventually(lambda: not record.connected)
    other, _ = await joined(node, "websocket", "agent-001", token("db"))
    assert node.registry.get(first.uid) is record, "it was not taken for the other's earlier uid"
    new = node.registry.get(other.uid)
    assert new is not None
    assert (record.config.failures != (), new.config.failures) == (True, ())
    same, _ = await joined(node, "websocket", "agent-001", token("web"))
    inherited = node.registry.get(same.uid)
    assert inherited is not None
    assert inherited.config.failures == record.config.failures


async def test_record_without_a_subject_goes_to_the_first_that_uses_it(programs: Programs) -> None:
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("all"))
    node = await programs.node(control_plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    agent = await TestAgent.over("websocket", node.ports, "agent-001")
    await agent.hello()
    await programs.stop(node)
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET)
    node = await programs.node(control_plane.ports["link"], auth={"type": "jwt", "secret_key_file": str(key)})
    again = await TestAgent.over("websocket", node.ports, "agent-001", agent.uid, token=token())
    await again.hello()
    record = node.registry.get(agent.uid)
    assert record is not None
    assert record.id_proved
    thief = await TestAgent.over("websocket", node.ports, "agent-001", agent.uid, token=token("thief"))
    assert (await thief.hello()).agent_identification.new_instance_uid


async def test_session_ends_with_its_token(programs: Programs) -> None:
    node = await node_with_tokens(programs, leeway="0s")
    agents = {kind: (await joined(node, kind, "", token(kind, lifetime=5)))[0] for kind in TRANSPORTS}
    socket = agents["websocket"].pipe.socket  # type: ignore[attr-defined]
    assert await socket.close_code() == 1008
    with pytest.raises(Refused) as caught:
        await agents["grpc"].pipe.pushed()
    assert caught.value.args[0] == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(Refused) as caught:
        await agents["http"].heartbeat()
    assert caught.value.args[0] == 401
    await eventually(lambda: node.metrics.closed[CloseReason.CREDENTIAL_EXPIRED.value] == 2)


async def test_other_paths_need_a_person(programs: Programs) -> None:
    node = await node_with_tokens(programs)
    for path in ("/metrics", "/api/v1/status", "/api/v1/agents", "/api/v1/agents/x/config"):
        assert (await get(node, path))[0] == 401
    assert await get(node, "/health") == (200, {"status": "ok"})
    assert await get(node, "/ready") == (200, {"ready": True})
    assert (await get(node, "/health", "metrics"))[1] == {"status": "ok"}
    assert (await get(node, "/metrics", "metrics"))[0] == 200


async def test_what_the_control_plane_shows(programs: Programs) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET)
    control_plane = await programs.control_plane()
    await apply(control_plane, TEMPLATE, assignment("one", selector="{labels: {team: a}, agent_ids: [agent-001]}"))
    node = await programs.node(control_plane.ports["link"], auth={"type": "jwt", "secret_key_file": str(key)})
    await eventually(lambda: node.policy.accepted)
    agent, answer = await joined(node, "websocket", "x", token(jti="t-1", labels={"team": "a"}), host="h")
    assert rate_of(answer) == b"rate: 1"
    url = f"http://127.0.0.1:{control_plane.ports['api']}/api/v1/agents"
    await eventually(lambda: len(control_plane.fleet.census) == 1)
    async with aiohttp.ClientSession() as client, client.get(url) as listed:
        (shown,) = await listed.json()
    assert shown["agent_id"] == "agent-001"
    assert shown["labels"]["team"] == "a"
    assert (shown["auth"]["method"], shown["auth"]["subject"], shown["auth"]["credential"]) == (
        "jwt",
        "agent-001",
        "t-1",
    )
    assert shown["auth"]["expires"] > "2026"
    async with aiohttp.ClientSession() as client, client.get(f"{url}/agent-001/explain") as explained:
        assert (await explained.json())["slots"][0]["assignment"] == "one"
    await agent.close()


@pytest.mark.parametrize(
    "head",
    [
        "Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n",
        "Authorization: Bearer {token}\r\nHost: other\r\n",
        "Authorization: Bearer {token}\r\nContent-Length: 5\r\n",
        "Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n",
        "Authorization: Bearer {token}\r\nX-A: a\x00b\r\n",
        "Authorization: Bearer {token}\r\nX-A: a\nX-B: b\r\n",
        "Authorization: Bearer {token}\r\nUpgrade: h2c\r\n",
    ],
)
async def test_attack_ambiguous_upgrade(programs: Programs, head: str) -> None:
    node = await node_with_tokens(programs)
    with pytest.raises(Refused) as caught:
        await RawSocket.open(node.ports["websocket"], extra=head.format(token=token()))
    assert caught.value.args[0] == 400


async def test_attack_two_tokens_over_http(programs: Programs) -> None:
    node = await node_with_tokens(programs)
    message = pb.AgentToServer(instance_uid=new_uid()).SerializeToString()
    lines = "POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    lines += f"Content-Length: {len(message)}\r\n"
    lines += f"Authorization: Bearer {token('a')}\r\nAuthorization: Bearer {token('b')}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", node.ports["http"])
    writer.write(lines.encode() + message)
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_keys_are_replaced_without_a_restart(programs: Programs) -> None:
    node = await node_with_tokens(programs)
    key, new = programs.folder / "jwt-key", b"z" * 40
    key.write_bytes(b"too short")
    await eventually(lambda: node.credentials.problem)
    assert "must have at least 32" in node.condition().status["degraded"][0]
    await joined(node, "http", "", token())
    key.write_bytes(new)
    await eventually(lambda: not node.credentials.problem)
    await joined(node, "http", "", token("b", secret=new))
    with pytest.raises(Refused):
        await joined(node, "http", "", token("c"))


@pytest.mark.parametrize(
    "revocation", [{"kind": "jti", "value": "t-1"}, {"kind": "subject", "value": "a"}, {"kind": "agent", "value": "a"}]
)
async def test_revoked_credential_ends_open_sessions(programs: Programs, revocation: dict[str, str]) -> None:
    key, revoked = programs.folder / "jwt-key", programs.folder / "revoked.json"
    key.write_bytes(SECRET)
    revoked.write_text("[]")
    auth = {"type": "jwt", "secret_key_file": str(key), "revocations_file": str(revoked)}
    node = await programs.node_with_policy(auth=auth)
    agents = {kind: (await joined(node, kind, "", token("a", jti="t-1")))[0] for kind in TRANSPORTS}
    other, _ = await joined(node, "websocket", "", token("b", jti="t-2"))
    revoked.write_text(json.dumps([revocation]))
    assert await agents["websocket"].pipe.socket.close_code() == 1008  # type: ignore[attr-defined]
    with pytest.raises(Refused) as caught:
        await agents["grpc"].pipe.pushed()
    assert caught.value.args[0] == grpc.StatusCode.UNAUTHENTICATED
    for transport in TRANSPORTS:
        with pytest.raises(Refused):
            await joined(node, transport, "", token("a", jti="t-1"))
    with pytest.raises(Refused):
        await agents["http"].heartbeat()
    assert (await other.heartbeat()).instance_uid == other.uid
    await eventually(lambda: node.metrics.closed[CloseReason.REVOKED.value] == 2)


async def test_addresses(programs: Programs) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET)
    auth = {"type": "jwt", "secret_key_file": str(key), "deny": ["127.0.0.0/8"]}
    node = await programs.node_with_policy(auth=auth)
    for transport, status in (("websocket", 403), ("http", 403), ("grpc", grpc.StatusCode.PERMISSION_DENIED)):
        with pytest.raises(Refused) as caught:
            await joined(node, transport, "", token())
        assert caught.value.args[0] == status
    assert (await get(node, "/health"))[0] == 403


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_nobody_is_judged_before_a_policy_has_arrived(programs: Programs, transport: str) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET)
    node = await programs.node(auth={"type": "jwt", "secret_key_file": str(key)})
    for credential in (token(), ""):
        with pytest.raises(Refused) as caught:
            await joined(node, transport, "", credential)
        assert caught.value.args[0] == (grpc.StatusCode.UNAVAILABLE if transport == "grpc" else 503)


async def test_attack_one_credential_takes_all_places(programs: Programs) -> None:
    node = await node_with_tokens(programs)
    for _ in range(16):
        await joined(node, "http", "", token("greedy"))
    with pytest.raises(Refused) as caught:
        await joined(node, "http", "", token("greedy"))
    assert caught.value.args[0] == 503
    assert len(node.registry) == 16
    await joined(node, "http", "", token("other"))


async def test_attack_uid_of_another_subject_on_another_node(programs: Programs) -> None:
    key = programs.folder / "jwt-key"
    key.write_bytes(SECRET)
    control_plane = await programs.control_plane()
    auth = {"type": "jwt", "secret_key_file": str(key)}
    one = await programs.node(control_plane.ports["link"], name="one", auth=auth)
    two = await programs.node(control_plane.ports["link"], name="two", auth=auth)
    await eventually(lambda: one.policy.accepted and two.policy.accepted)
    victim, _ = await joined(one, "websocket", "", token("victim"))
    agents = control_plane.fleet.census.agents
    await eventually(lambda: victim.uid in agents)
    thief = await TestAgent.over("websocket", two.ports, "", victim.uid, token=token("thief"))
    await thief.hello()
    assert await thief.pipe.socket.close_code() == 1001  # type: ignore[attr-defined]
    await eventually(lambda: two.registry.get(victim.uid) is None)
    assert (agents[victim.uid].node, agents[victim.uid].agent_id) == ("local/one", "victim")
    assert (await victim.heartbeat()).instance_uid == victim.uid

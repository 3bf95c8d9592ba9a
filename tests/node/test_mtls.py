"""Client certificates: over real TLS, on every transport where it can be."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import agents_pb2_grpc
from relay.testing.certificates import Authority, CertificateFiles
from tests.auth.builders import SECRET
from tests.conftest import Programs, eventually
from tests.node.test_authentication import token
from tests.wire import BINARY, UPGRADE, RawSocket, Refused, describe, frame, new_uid


class Place:
    """A CA, the node's certificate, and the settings that go with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server = self.authority.issue("node")

    def tls(self, **more: Any) -> dict[str, Any]:
        return {
            "enabled": True,
            "cert_file": str(self.server.cert_file),
            "key_file": str(self.server.key_file),
            "client_ca_file": str(self.authority.ca_file),
            **more,
        }

    def context(self, pair: CertificateFiles | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        context.check_hostname = False
        if pair is not None:
            context.load_cert_chain(pair.cert_file, pair.key_file)
        return context


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def hello() -> pb.AgentToServer:
    message = pb.AgentToServer(instance_uid=new_uid(), capabilities=0x3807)
    describe(message, "its-own-word")
    return message


async def joined(node: Node, context: ssl.SSLContext, extra: str = "") -> tuple[RawSocket, pb.AgentToServer]:
    socket = await RawSocket.open(node.ports["websocket"], ssl=context, extra=extra)
    message = hello()
    socket.write(frame(b"\0" + message.SerializeToString(), BINARY))
    await socket.message()
    return socket, message


async def test_certificate_names_the_agent(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    _, message = await joined(node, place.context(place.authority.issue("agent-001")))
    record = node.registry.get(message.instance_uid)
    assert record is not None
    assert record.agent_id == "agent-001"
    assert record.credential is not None
    assert record.credential.method == "mtls"


async def test_agent_without_a_certificate_is_refused_after_the_handshake(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    with pytest.raises(Refused) as caught:
        await joined(node, place.context())
    assert caught.value.args[0] == 401


@pytest.mark.parametrize("kind", ["of another CA", "expired", "not yet valid", "for servers only"])
async def test_attack_bad_certificate(programs: Programs, place: Place, tmp_path: Path, kind: str) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    now = time.time()
    if kind == "of another CA":
        other = tmp_path / "other"
        other.mkdir()
        pair = Authority(other).issue("agent-001")
    elif kind == "expired":
        pair = place.authority.issue("agent-001", valid=(now - 7200, now - 3600))
    elif kind == "not yet valid":
        pair = place.authority.issue("agent-001", valid=(now + 3600, now + 7200))
    else:
        pair = place.authority.issue("agent-001", usage="server")
    with pytest.raises((Refused, OSError, asyncio.IncompleteReadError)):
        await joined(node, place.context(pair))
    assert len(node.registry) == 0


async def test_session_ends_with_its_certificate(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    now = time.time()
    socket, _ = await joined(node, place.context(place.authority.issue("a", valid=(now - 60, now + 2))))
    assert await socket.close_code() == 1008


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_attack_resumed_session_of_an_expired_certificate(
    programs: Programs, place: Place, version: ssl.TLSVersion
) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls(min_version="1.2")})
    now = time.time()
    context = place.context(place.authority.issue("agent-001", valid=(now - 60, now + 3)))
    context.minimum_version = context.maximum_version = version
    head = UPGRADE.format(path="/v1/opamp", port=1, extra="").encode()

    def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bytes]:
        with (
            socket.create_connection(("127.0.0.1", node.ports["websocket"])) as plain,
            context.wrap_socket(plain, session=session) as tls,
        ):
            tls.sendall(head)
            return tls.session, tls.recv(4096)  # tickets of TLS 1.3 come with the first data

    session, answer = await asyncio.to_thread(connect, None)
    assert answer.startswith(b"HTTP/1.1 101")
    await asyncio.sleep(max(0.0, now + 4 - time.time()))
    try:
        _, answer = await asyncio.to_thread(connect, session)
    except OSError:
        return  # the handshake was a full one, and TLS refused the certificate
    assert answer.startswith(b"HTTP/1.1 401") or not answer


async def test_revoked_certificate_and_a_list_that_changes(programs: Programs, place: Place) -> None:
    crl = place.folder / "crl.pem"
    pair = place.authority.issue("agent-001")
    crl.write_bytes(place.authority.revocation_list())
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls(crl_file=str(crl))})
    before = node.credentials.current
    await joined(node, place.context(pair))
    crl.write_bytes(place.authority.revocation_list(pair))
    await eventually(lambda: node.credentials.current is not before)
    with pytest.raises(Refused) as caught:
        await joined(node, place.context(pair))
    assert caught.value.args[0] == 401


async def test_renewed_server_certificate_needs_no_restart(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    context = place.context(place.authority.issue("agent-001"))
    open_before, _ = await joined(node, context)

    async def serial() -> str:
        socket, _ = await joined(node, context)
        found: str = socket.writer.get_extra_info("peercert")["serialNumber"]
        await socket.close()
        return found

    first, loaded = await serial(), node.credentials.current
    place.authority.issue("node")
    await eventually(lambda: node.credentials.current is not loaded)
    assert await serial() != first
    uid = new_uid()
    open_before.write(frame(b"\0" + pb.AgentToServer(instance_uid=uid).SerializeToString(), BINARY))
    assert (await open_before.message()).instance_uid == uid, "open connections stay"


async def test_token_decides_alone_beside_a_certificate(programs: Programs, place: Place) -> None:
    key = place.folder / "jwt-key"
    key.write_bytes(SECRET)
    auth = {"type": "any", "secret_key_file": str(key)}
    node = await programs.node_with_policy(auth=auth, server={"tls": place.tls(client_auth="optional")})
    context = place.context(place.authority.issue("by-certificate"))
    for header, name in (("", "by-certificate"), (f"Authorization: Bearer {token('by-token')}\r\n", "by-token")):
        _, message = await joined(node, context, header)
        record = node.registry.get(message.instance_uid)
        assert record is not None
        assert record.agent_id == name
    with pytest.raises(Refused):
        await joined(node, context, "Authorization: Bearer x\r\n")


async def test_grpc(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    pair = place.authority.issue("agent-001")
    for certificate, is_served in ((pair, True), (None, False)):
        credentials = grpc.ssl_channel_credentials(
            place.authority.ca_file.read_bytes(),
            certificate.key_file.read_bytes() if certificate else None,
            certificate.cert_file.read_bytes() if certificate else None,
        )
        async with grpc.aio.secure_channel(f"localhost:{node.ports['grpc']}", credentials) as channel:
            call = agents_pb2_grpc.AgentStreamStub(channel).Connect()
            message = hello()
            try:
                await call.write(message)
                answer = await call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                answer = None
            assert isinstance(answer, pb.ServerToAgent) is is_served
            record = node.registry.get(message.instance_uid)
            assert (record is not None and record.agent_id == "agent-001") is is_served


async def test_metrics_tell_when_certificates_end(programs: Programs, place: Place) -> None:
    node = await programs.node_with_policy(auth={"type": "mtls"}, server={"tls": place.tls()})
    text = node.metrics.expose().decode()
    (line,) = [line for line in text.splitlines() if line.startswith("opamp_relay_certificate_expiry_seconds{")]
    assert 'use="agents"' in line
    assert 86_000 < float(line.rpartition(" ")[2]) <= 86_400
    place.server.cert_file.write_bytes(b"x")
    await eventually(lambda: "opamp_relay_tls_reload_failures_total 1.0" in node.metrics.expose().decode())

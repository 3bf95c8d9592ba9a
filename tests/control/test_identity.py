"""TLS on the link, over real sockets: who is let in, and as whom."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.auth.identities import node_uri
from relay.control.app import ControlPlane
from relay.link.channel import dial
from relay.link.protocol.peer import Peer
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc
from relay.testing.certificates import Authority
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.actors import ANN
from tests.control.join.joining import identities, token, with_tls

NOW = datetime.datetime.now(datetime.UTC)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def leaf(plane: ControlPlane, key: ec.EllipticCurvePrivateKey, **more: Any) -> bytes:
    """A certificate by the control plane's own CA."""
    issuer, now = identities(plane).trust.issuer, NOW.timestamp()
    return issuer.node(more.get("region", "eu"), more.get("name", "one"), key.public_key(), more.get("at", now), 3600)


async def refusal(plane: ControlPlane, certificate: bytes, key: bytes, region: str = "eu", name: str = "one") -> str:
    """The status of a Sync stream that says it is from this node; empty if it is served."""
    credentials = grpc.ssl_channel_credentials(identities(plane).trust.authorities, key or None, certificate or None)
    async with dial(f"127.0.0.1:{plane.ports['link']}", credentials) as channel:
        call: Any = link_pb2_grpc.ControlPlaneStub(channel).Sync()
        try:
            await call.write(link_pb2.SyncRequest(hello=link_pb2.SyncHello(node=Peer(region, name).message())))
            async with asyncio.timeout(10):
                answer = await call.read()
        except asyncio.InvalidStateError:
            answer = grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        if answer is grpc.aio.EOF:
            return str((await call.code()).name)
        call.cancel()
    return ""


async def test_node_that_joined_is_served_as_who_it_is(programs: Programs) -> None:
    plane = await with_tls(programs)
    await apply(plane, TEMPLATE, assignment("all"))
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.policy.accepted and "eu/one" in plane.fleet.census.nodes)
    assert plane.fleet.census.nodes["eu/one"].connected
    await programs.stop(node)
    again = await programs.node(join="", region="eu")
    await eventually(lambda: again.link.connected)


async def test_attack_certificates_that_are_none(programs: Programs, tmp_path: Any) -> None:
    plane = await with_tls(programs)
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.link.connected)
    key = ec.generate_private_key(ec.SECP256R1())
    foreign = Authority(tmp_path).issue("one")
    assert await refusal(plane, foreign.cert_file.read_bytes(), foreign.key_file.read_bytes()) == "UNAVAILABLE"
    assert await refusal(plane, b"", b"") == "UNAVAILABLE"
    # Of our own CA, but for another key than the one that joined, for nobody that joined, expired, not yet valid.
    assert await refusal(plane, leaf(plane, key), pem(key)) == "UNAUTHENTICATED"
    assert await refusal(plane, leaf(plane, key, name="two"), pem(key), name="two") == "UNAUTHENTICATED"
    for at in (NOW.timestamp() - 7200, NOW.timestamp() + 7200):
        status = await refusal(plane, leaf(plane, key, at=at), pem(key))
        assert status in ("UNAVAILABLE", "UNAUTHENTICATED")


async def test_attack_claiming_another_region_or_name(programs: Programs) -> None:
    plane = await with_tls(programs)
    await programs.stop(await programs.node(join=await token(plane), region="eu"))
    folder = programs.folder / "node-eu-one" / "identity"
    mine = (folder / "node.crt").read_bytes(), (folder / "node.key").read_bytes()
    assert await refusal(plane, *mine) == ""
    for region, name in (("us", "one"), ("eu", "two"), ("", ""), ("eu", "one/../two")):
        status = await refusal(plane, *mine, region=region, name=name)
        assert status in ("PERMISSION_DENIED", "INVALID_ARGUMENT"), (region, name)
    credentials = grpc.ssl_channel_credentials(identities(plane).trust.authorities, mine[1], mine[0])
    async with dial(f"127.0.0.1:{plane.ports['link']}", credentials) as channel:
        stub = link_pb2_grpc.ControlPlaneStub(channel)
        calls: list[Any] = [
            stub.FetchBlob(link_pb2.BlobRequest(node=Peer("us", "one").message(), sha256=bytes(32))),
            stub.Report(iter([link_pb2.StatusReport(hello=Peer("us", "one").message())])),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read() if not hasattr(call, "__anext__") else await call.__aiter__().__anext__()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_revoked_node_is_cut_off_at_once(programs: Programs) -> None:
    plane = await with_tls(programs)
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.link.connected)
    await identities(plane).registry.revoke("eu/one", "stolen", actor=ANN)
    await eventually(lambda: not plane.fleet.census.nodes["eu/one"].connected, 3)
    await eventually(lambda: "is revoked: stolen" in node.link.refusal)
    assert any("is revoked: stolen" in problem for problem in node.condition().status["degraded"])


async def test_certificates_are_renewed_while_the_link_is_up(programs: Programs) -> None:
    plane = await with_tls(programs, keys={"node_ttl": "10s"})
    node = await programs.node(join=await token(plane), region="eu")
    assert node._identity is not None
    first = node._identity.node.serial
    await eventually(lambda: node._identity is not None and node._identity.node.serial != first, 12)
    await eventually(lambda: node.link.connected and plane.fleet.census.nodes["eu/one"].connected)


async def test_streams_end_with_their_certificate(programs: Programs) -> None:
    plane = await with_tls(programs)
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.link.connected)
    found = identities(plane).identify(node._identity.certificate if node._identity else b"")
    assert found == ("eu", "one")
    for certificate, reason in ((b"", "no_credential"), (b"x", "certificate")):
        assert identities(plane).identify(certificate) == f"the certificate of this node is not accepted: {reason}"


async def test_certificates_of_another_ca(programs: Programs) -> None:
    folder = programs.folder / "pki"
    folder.mkdir()
    authority = Authority(folder)
    server = authority.issue("control-plane")
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_uri("corp", "eu", "one"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority._name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(minutes=5))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(names, critical=True)
        .sign(authority._key, hashes.SHA256())
    )
    (folder / "one.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "one.key").write_bytes(pem(key))
    tls = {
        "enabled": True,
        "cert_file": str(server.cert_file),
        "key_file": str(server.key_file),
        "client_ca_file": str(authority.ca_file),
    }
    plane = await programs.control_plane(
        server={"link": {"endpoint": "127.0.0.1:0", "tls": tls}, "api": {"endpoint": "127.0.0.1:0"}}
    )
    assert "join" not in plane.ports
    address = {
        "endpoint": f"127.0.0.1:{plane.ports['link']}",
        "ca_file": str(authority.ca_file),
        "cert_file": str(folder / "one.crt"),
        "key_file": str(folder / "one.key"),
    }
    node = await programs.node(join="", region="eu", control_plane=address)
    await eventually(lambda: node.link.connected)
    assert node.renewal is None


async def served_serial(plane: ControlPlane) -> int:
    """The serial number of the certificate that the join port serves."""
    context = ssl.create_default_context(cadata=identities(plane).trust.authorities.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", plane.ports["join"], ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


async def test_ports_take_up_the_renewed_certificate(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await with_tls(programs)
    first = await served_serial(plane)
    monkeypatch.setattr(identities(plane), "_ends_at", 0.0)

    async def is_another() -> bool:
        return await served_serial(plane) != first

    await eventually(is_another)
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.link.connected)


async def test_failed_renewal_leaves_nobody_unwatched(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await with_tls(programs)
    node = await programs.node(join=await token(plane), region="eu")
    await eventually(lambda: node.link.connected)
    found = identities(plane)
    (found.cert_file.parent / ".server.crt.new" / "x").mkdir(parents=True)
    monkeypatch.setattr(found, "_ends_at", 0.0)
    await eventually(lambda: any("could not be replaced" in problem for problem in plane.condition.degraded))
    await found.registry.revoke("eu/one", "stolen", actor=ANN)
    await eventually(lambda: not plane.fleet.census.nodes["eu/one"].connected, 3)

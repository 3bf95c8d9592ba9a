"""Control planes with TLS on the link, and nodes that join them, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from relay.control.app import ControlPlane
from relay.control.identity import Identities
from relay.control.join.registry import GrantRequest
from tests.conftest import Programs
from tests.control.actors import ANN


def csr(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    """A certificate request."""
    signer = key or ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(signer, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


async def with_tls(programs: Programs, ports: Any = None, **more: Any) -> ControlPlane:
    """A control plane that nodes must join; `ports` are those of `link` and `join`, to start again."""
    fixed: Mapping[str, int] = ports or {}
    server = {
        "link": {"endpoint": f"127.0.0.1:{fixed.get('link', 0)}", "tls": {"enabled": True}},
        "join": {"endpoint": f"127.0.0.1:{fixed.get('join', 0)}"},
        "api": {"endpoint": "127.0.0.1:0"},
    }
    return await programs.control_plane(server=server, **more)


def identities(plane: ControlPlane) -> Identities:
    assert plane.identities is not None
    return plane.identities


async def token(plane: ControlPlane, region: str = "eu", **more: Any) -> str:
    return (await identities(plane).registry.grant(GrantRequest(region, **more), actor=ANN))[1]

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from relay.auth.identities import NodeCertificate, key_digest_of, node_certificate, node_uri
from relay.auth.principal import Reason
from relay.testing.certificates import _builder

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = 1_800_000_000.0
NAME = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "x")])
URI = node_uri("example", "eu", "one")


def pem(*uris: str, valid: tuple[float, float] = (NOW, NOW + 3600), has_names: bool = True) -> bytes:
    builder = _builder(NAME, NAME, KEY.public_key(), valid)
    if has_names:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("x")]), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_certificate_names_a_node() -> None:
    found = node_certificate(pem(URI), NOW)
    assert isinstance(found, NodeCertificate)
    assert (found.trust_domain, found.region, found.name, found.key) == ("example", "eu", "one", "eu/one")
    assert found.not_after == NOW + 3600
    assert found.key_digest == key_digest_of(x509.load_pem_x509_certificate(pem(URI)))
    assert len(found.key_digest) == 64


@pytest.mark.parametrize(
    "certificate",
    [
        b"",
        b"garbage",
        pem(has_names=False),
        pem(),
        pem(URI, URI.replace("one", "two")),
        pem("https://example/region/eu/node/one"),
        pem("spiffe://example/agent/one"),
        pem("spiffe://example/region/eu/node/one/agent/two"),
        pem("spiffe://example/region/../node/one"),
        pem("spiffe:///region/eu/node/one"),
    ],
)
def test_certificates_of_nobody(certificate: bytes) -> None:
    assert node_certificate(certificate, NOW) is Reason.CERTIFICATE


@pytest.mark.parametrize(
    ("now", "reason"),
    [(NOW - 61, Reason.NOT_YET_VALID), (NOW - 59, None), (NOW + 3659, None), (NOW + 3660, Reason.EXPIRED)],
)
def test_time(now: float, reason: Reason | None) -> None:
    found = node_certificate(pem(URI), now)
    assert found is reason if reason is not None else isinstance(found, NodeCertificate)

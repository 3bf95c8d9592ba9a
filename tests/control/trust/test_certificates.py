from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from relay.auth.identities import NodeCertificate, node_certificate
from relay.control.trust.certificates import Issuer, new_authority, public_key_of

NOW = 1_800_000_000.0
AUTHORITY = new_authority("example", NOW)
ISSUER = Issuer(AUTHORITY, "example")
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evil"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x")])


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.CertificateSigningRequest:
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://example/region/us/node/evil")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(NAME).add_extension(wanted, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256())


def text(made: x509.CertificateSigningRequest) -> str:
    return made.public_bytes(Encoding.PEM).decode()


def test_attack_of_a_request_only_the_key_counts() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public, digest = public_key_of(text(request(key)))
    pem = ISSUER.node("eu", "one", public, NOW, 3600)
    found = node_certificate(pem, NOW)
    assert isinstance(found, NodeCertificate)
    assert (found.key, found.key_digest, found.not_after) == ("eu/one", digest, NOW + 3600)
    leaf = x509.load_pem_x509_certificate(pem)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "evil" not in leaf.subject.rfc4514_string()
    assert leaf.not_valid_before_utc.timestamp() == NOW - 300


def test_short_lives_begin_little_in_the_past() -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = x509.load_pem_x509_certificate(ISSUER.node("eu", "one", public, NOW, 10))
    assert leaf.not_valid_before_utc.timestamp() == NOW - 1


def test_server_certificate_is_for_the_names() -> None:
    pair = ISSUER.server(["127.0.0.1", "cp.example", "::1"], NOW, 3600)
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cp.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(AUTHORITY.certificate))
    ssl.create_default_context(cadata=AUTHORITY.certificate.decode())


@pytest.mark.parametrize(
    ("csr", "reason"),
    [
        ("", "not a certificate request"),
        ("x" * 100, "not a certificate request"),
        (text(request(rsa.generate_private_key(65537, 2048))), "is not P-256"),
        (text(request(ec.generate_private_key(ec.SECP384R1()))), "is not P-256"),
    ],
)
def test_odd_requests(csr: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        public_key_of(csr)


def test_attack_request_for_a_key_that_one_does_not_have() -> None:
    der = bytearray(request(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(ValueError, match="is not signed by its key"):
        public_key_of(forged)

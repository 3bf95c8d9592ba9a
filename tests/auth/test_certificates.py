from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.auth.certificates import CertificateVerifier, Serial, revoked_by
from relay.auth.principal import Method, Principal, Reason
from tests.auth.builders import CA_NAME, ED_KEY, NOW, authority, certificate, revocation_list

NODE = "spiffe://acme/region/eu/node/eu-1"


def verify(der: bytes) -> Principal | Reason:
    return CertificateVerifier().verify(der, NOW)


def test_common_name_is_the_agent_id() -> None:
    assert verify(certificate()) == Principal("agent-001", Method.MTLS, "abc", "agent-001", {}, NOW + 3600)


def test_uri_wins_over_the_common_name() -> None:
    principal = verify(certificate(["x"], uris=["spiffe://acme/region/eu/agent/agent-007"]))
    assert isinstance(principal, Principal)
    assert (principal.agent_id, principal.subject) == ("agent-007", "agent-007")


def test_foreign_uri_is_not_looked_at() -> None:
    principal = verify(certificate(uris=["https://example.com/agent/x"]))
    assert isinstance(principal, Principal)
    assert principal.agent_id == "agent-001"


def test_labels_are_organizational_units() -> None:
    principal = verify(certificate(units=["team=a", "Platform", "env=prod=eu"]))
    assert isinstance(principal, Principal)
    assert principal.labels == {"team": "a", "env": "prod=eu"}


@pytest.mark.parametrize(
    "der",
    [
        certificate([]),
        certificate(["a", "b"]),
        certificate(["a\x07"]),
        certificate(uris=[NODE]),
        certificate(uris=["spiffe://acme/agent/x/"]),
        certificate(uris=["SPIFFE://acme/ns/x/sa/y"]),
        certificate(
            extensions=[x509.TLSFeature([x509.TLSFeatureType.status_request])] * 1
            + [x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.37"), b"x")]
        ),
        certificate(uris=["spiffe://acme/agent/a", "spiffe://acme/agent/b"]),
        certificate(units=["region=us"]),
        certificate(units=["=us"]),
        certificate(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]),
        certificate(extensions=[x509.BasicConstraints(ca=True, path_length=None)]),
        b"",
        b"not a certificate",
        certificate()[:-50],
    ],
)
def test_certificate_of_no_agent(der: bytes) -> None:
    assert verify(der) is Reason.CERTIFICATE


def test_certificate_for_clients() -> None:
    for usage in (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE):
        extensions = [x509.ExtendedKeyUsage([usage]), x509.BasicConstraints(ca=False, path_length=None)]
        assert isinstance(verify(certificate(extensions=extensions)), Principal)


def test_validity_is_by_the_callers_clock() -> None:
    der = certificate()
    verifier = CertificateVerifier()
    assert verifier.verify(der, NOW + 3600) is Reason.EXPIRED
    assert verifier.verify(der, NOW - 61) is Reason.NOT_YET_VALID


def test_revoked_certificate() -> None:
    revoked = revoked_by(revocation_list(0xABC) + revocation_list(7), authority())
    assert revoked == {Serial(CA_NAME.public_bytes(), 0xABC), Serial(CA_NAME.public_bytes(), 7)}
    assert CertificateVerifier(revoked).verify(certificate(), NOW) is Reason.REVOKED
    assert isinstance(CertificateVerifier(revoked).verify(certificate(serial=8), NOW), Principal)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ED_KEY])
def test_revocation_list_of_an_impostor(key: object) -> None:
    with pytest.raises(ValueError, match="of CN=a CA is not signed by a trusted CA"):
        revoked_by(revocation_list(7, key=key), authority())


def test_revocation_list_of_another_authority() -> None:
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])
    with pytest.raises(ValueError, match="not signed by a trusted CA"):
        revoked_by(revocation_list(7), authority(name=other))
    assert revoked_by(revocation_list(), authority(name=other) + authority()) == frozenset()


@pytest.mark.parametrize("crls", [b"", b"nothing", revocation_list() + b"more", revocation_list()[:-20]])
def test_bad_revocation_list(crls: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        revoked_by(crls, authority())

"""Issues certificates (X.509, P-256): of the CA, of this control plane, and of nodes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.auth.identities import key_digest_of, node_uri

_CA_LIFETIME_S = 10 * 365 * 86_400
_BEFORE_S = 300.0
"""A certificate begins a little in the past, for clocks that are behind; but at most a tenth of its lifetime."""


class Pair(NamedTuple):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def new_authority(trust_domain: str, now: float) -> Pair:
    """A self-signed CA whose certificates are leaves."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"OpAMP relay CA of {trust_domain}")])
    certificate = (
        _builder(name, name, key.public_key(), now, _CA_LIFETIME_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(Encoding.PEM), _pem(key))


class Issuer:
    """Issues leaves of one CA.

    Args:
        authority: certificate and key of the CA.
    """

    def __init__(self, authority: Pair, trust_domain: str) -> None:
        self._certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = load_pem_private_key(authority.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._trust_domain = trust_domain

    def server(self, names: Iterable[str], now: float, lifetime_s: float) -> Pair:
        """A certificate for this control plane, and its new key.

        Args:
            names: by which it is reached: host names and IP addresses.
            now: Unix seconds.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = self._leaf(
            key.public_key(), "control plane", alternatives, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime_s
        )
        return Pair(certificate, _pem(key))

    def node(
        self,
        region: str,
        name: str,
        public: ec.EllipticCurvePublicKey,
        now: float,
        lifetime_s: float,
        *,
        serial: int | None = None,
    ) -> bytes:
        """The certificate of a node, PEM.

        Args:
            now: Unix seconds.
            serial: from `new_serial`; None to draw one.
        """
        uri = x509.UniformResourceIdentifier(node_uri(self._trust_domain, region, name))
        alternatives = x509.SubjectAlternativeName([uri])
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._leaf(public, "node", alternatives, usage, now, lifetime_s, serial=serial)

    def _leaf(
        self,
        public: ec.EllipticCurvePublicKey,
        common_name: str,
        alternatives: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
        now: float,
        lifetime_s: float,
        *,
        serial: int | None = None,
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = (
            _builder(subject, self._certificate.subject, public, now, lifetime_s, serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def new_serial() -> int:
    """Draw a serial number."""
    return x509.random_serial_number()


def public_key_of(csr_pem: str) -> tuple[ec.EllipticCurvePublicKey, str]:
    """(public key of a certificate request, its SHA-256 in hex). Nothing else of a request counts.

    Raises:
        ValueError: it is not one, is not signed by its key, or its key is not P-256.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        is_signed = request.is_signature_valid
        public = request.public_key()
    except Exception:  # strange requests raise many kinds of errors
        raise ValueError("not a certificate request in PEM") from None
    if not is_signed:
        raise ValueError("the certificate request is not signed by its key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("the key of the certificate request is not P-256")
    return public, key_digest_of(request)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: float,
    lifetime_s: float,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    begins = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial or new_serial())
        .not_valid_before(begins - timedelta(seconds=min(_BEFORE_S, lifetime_s / 10)))
        .not_valid_after(begins + timedelta(seconds=max(1, round(lifetime_s))))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

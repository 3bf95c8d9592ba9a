"""Client certificates of agents (X.509). That a trusted CA issued one is TLS's business; whom it names is ours.

Validity and revocation are checked here as well, on every transport alike: connections outlive handshakes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from relay.auth.principal import Method, Principal, Reason, is_subject, label_problem
from relay.documents import Scalar

_AGENT_URI = re.compile(r"spiffe://[^/]+/(?:.*/)?agent/([^/]+)")
_END = b"-----END X509 CRL-----"


class Serial(NamedTuple):
    """Identifies a certificate."""

    issuer: bytes
    """Name of the CA, DER."""
    number: int


def revoked_by(crls: bytes, authorities: bytes) -> frozenset[Serial]:
    """The certificates that some revocation lists name.

    Args:
        crls: one or more in PEM.
        authorities: the CAs that may have signed them, in PEM.

    Raises:
        ValueError: a list cannot be read, or none of the CAs has signed it.
    """
    signers = x509.load_pem_x509_certificates(authorities)
    revoked: set[Serial] = set()
    for part in crls.split(_END)[:-1]:
        crl = x509.load_pem_x509_crl(part + _END + b"\n")
        if not any(_has_signed(signer, crl) for signer in signers):
            raise ValueError(f"the revocation list of {crl.issuer.rfc4514_string()} is not signed by a trusted CA")
        issuer = crl.issuer.public_bytes()
        revoked.update(Serial(issuer, entry.serial_number) for entry in crl)
    if not crls.rstrip().endswith(_END):
        raise ValueError("not a revocation list in PEM")
    return frozenset(revoked)


def _has_signed(signer: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    return signer.subject == crl.issuer and crl.is_signature_valid(signer.public_key())  # type: ignore[arg-type]


class CertificateVerifier:
    """Finds out whom a certificate names.

    Args:
        revoked: certificates that are revoked by their CA.
    """

    def __init__(self, revoked: Iterable[Serial] = ()) -> None:
        self._revoked = frozenset(revoked)

    def verify(self, der: bytes, now: float) -> Principal | Reason:
        """Find out which agent a certificate belongs to.

        Args:
            der: of the leaf, whose chain TLS has verified.
            now: Unix seconds.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            return self._principal(certificate, now)
        except Exception:  # parts are parsed when first looked at, and strange ones raise many kinds of errors
            return Reason.CERTIFICATE

    def _principal(self, certificate: x509.Certificate, now: float) -> Principal | Reason:
        expires_at = certificate.not_valid_after_utc.timestamp()
        if now >= expires_at:
            return Reason.EXPIRED
        if now < certificate.not_valid_before_utc.timestamp():
            return Reason.NOT_YET_VALID
        if Serial(certificate.issuer.public_bytes(), certificate.serial_number) in self._revoked:
            return Reason.REVOKED
        name, labels = _name(certificate), _labels(certificate)
        if not _is_for_clients(certificate) or not is_subject(name) or label_problem(labels):
            return Reason.CERTIFICATE
        return Principal(name, Method.MTLS, f"{certificate.serial_number:x}", name, labels, expires_at)


def _name(certificate: x509.Certificate) -> str:
    """The agent id; empty if the certificate names none, or names a node."""
    try:
        names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        uris: list[str] = []
    else:
        assert isinstance(names, x509.SubjectAlternativeName)
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) > 1:
        return ""
    if uris and uris[0].lower().startswith("spiffe:"):
        match = _AGENT_URI.fullmatch(uris[0])
        return match[1] if match is not None else ""  # another workload's, or a node's
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if len(common) == 1 else ""


def _labels(certificate: x509.Certificate) -> dict[str, Scalar]:
    """Labels from organizational units of the form `key=value`."""
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    pairs = (str(unit.value).partition("=") for unit in units)
    return {key: value for key, equals, value in pairs if equals}


def _is_for_clients(certificate: x509.Certificate) -> bool:
    """Whether its extensions allow it as a client's certificate, and it is no CA's."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return False
        if isinstance(value, x509.ExtendedKeyUsage) and not (
            {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(value)
        ):
            return False
    return True

"""Certificates of nodes: which node of which region one is for. Its chain is TLS's business."""

from __future__ import annotations

import re
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from relay.auth.principal import Reason
from relay.ids import sha256

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NODE_URI = re.compile(rf"spiffe://([^/]+)/region/({_NAME})/node/({_NAME})")
LEEWAY_S = 60.0
"""How far clocks may be apart: a certificate is accepted for so long before it begins and after it ends."""


class NodeCertificate(NamedTuple):
    """The certificate of a node."""

    trust_domain: str
    region: str
    name: str
    serial: str
    """Hex."""
    key_digest: str
    """SHA-256 of its public key (SubjectPublicKeyInfo), hex."""
    not_after: float
    """Unix seconds."""

    @property
    def key(self) -> str:
        """REGION/NAME."""
        return f"{self.region}/{self.name}"


def node_uri(trust_domain: str, region: str, name: str) -> str:
    """The URI in the certificate of a node."""
    return f"spiffe://{trust_domain}/region/{region}/node/{name}"


def node_certificate(pem: bytes, now: float) -> NodeCertificate | Reason:
    """Find out which node a certificate is for.

    Args:
        pem: of the leaf, whose chain TLS has verified.
        now: Unix seconds.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        assert isinstance(names, x509.SubjectAlternativeName)
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        match = _NODE_URI.fullmatch(uri)
        if match is None:
            return Reason.CERTIFICATE
        key_digest = key_digest_of(certificate)
    except Exception:  # parts are parsed when first looked at, and strange ones raise many kinds of errors
        return Reason.CERTIFICATE
    not_after = certificate.not_valid_after_utc.timestamp()
    if now >= not_after + LEEWAY_S:
        return Reason.EXPIRED
    if now < certificate.not_valid_before_utc.timestamp() - LEEWAY_S:
        return Reason.NOT_YET_VALID
    return NodeCertificate(match[1], match[2], match[3], f"{certificate.serial_number:x}", key_digest, not_after)


def key_digest_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo), hex."""
    return sha256(holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hex()

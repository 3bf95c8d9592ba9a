"""Keys, tokens and certificates for tests of `relay.auth`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

NOW = 1_800_000_000.0
SECRET = b"a secret of thirty-two bytes or more"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
CA_KEY = ec.generate_private_key(ec.SECP256R1())
CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")])


def public_pem(key: Any) -> bytes:
    """The public half of a private key."""
    encoded: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that is good at `NOW`, except for what `claims` and `headers` change; a claim of None is left out."""
    content = {"sub": "agent-001", "iat": NOW - 10, "exp": NOW + 600, **claims}
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(content, key, algorithm, headers)


def at(seconds: float) -> datetime:
    """A Unix time for certificates."""
    return datetime.fromtimestamp(seconds, UTC)


def certificate(
    common_names: Sequence[str] = ("agent-001",),
    *,
    uris: Sequence[str] = (),
    units: Sequence[str] = (),
    extensions: Sequence[x509.ExtensionType] = (),
    valid: tuple[float, float] = (NOW - 60, NOW + 3600),
    serial: int = 0xABC,
) -> bytes:
    """A client certificate of the CA, DER."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    names += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(CA_NAME)
        .public_key(EC_KEY.public_key())
        .serial_number(serial)
        .not_valid_before(at(valid[0]))
        .not_valid_after(at(valid[1]))
    )
    if uris:
        names_of = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names_of, critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(CA_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def authority(key: Any = CA_KEY, name: x509.Name = CA_NAME) -> bytes:
    """The CA's certificate, PEM."""
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at(NOW - 3600))
        .not_valid_after(at(NOW + 3600))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


def revocation_list(*serials: int, key: Any = CA_KEY) -> bytes:
    """A CRL of the CA, PEM."""
    builder = x509.CertificateRevocationListBuilder(CA_NAME, at(NOW - 60), at(NOW + 3600))
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(NOW - 60)).build()
        builder = builder.add_revoked_certificate(revoked)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)

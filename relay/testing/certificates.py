"""Throw-away certificates for tests: a CA and its certificates, valid for a day, for loopback names."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The PEM files of one certificate."""

    cert_file: Path
    key_file: Path


class Authority:
    """A CA whose files are in a folder; its key is only in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away CA")])
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.crt"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        valid: tuple[float, float] | None = None,
        usage: Literal["server", "client"] | None = None,
    ) -> CertificateFiles:
        """Issue a certificate with this common name, valid for `localhost`, 127.0.0.1 and ::1.

        Args:
            valid: from and until, Unix seconds; None for a day from now.
            usage: for servers or clients only; None for both.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1"))]
        builder = _builder(subject, self._name, key.public_key(), valid)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([_USAGES[usage]]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        files = CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        files.cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def revocation_list(self, *revoked: CertificateFiles) -> bytes:
        """A revocation list in PEM."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now, now + timedelta(days=1))
        for files in revoked:
            serial = x509.load_pem_x509_certificate(files.cert_file.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: tuple[float, float] | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begins, ends = now - timedelta(minutes=5), now + timedelta(days=1)
    if valid is not None:
        begins, ends = (datetime.fromtimestamp(seconds, UTC) for seconds in valid)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )

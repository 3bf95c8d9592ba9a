"""A node's identity: its key, its certificate, and what it trusts, in a folder that only it can read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from relay.auth.identities import NodeCertificate, node_certificate
from relay.auth.key_sets import KeyChain
from relay.auth.signing import Signed, key_id
from relay.errors import StoreError
from relay.store.private import write_private

_KEY, _CERTIFICATE, _AUTHORITIES, _TRUST = "node.key", "node.crt", "ca.crt", "key_sets.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is, and whom it trusts."""

    certificate: bytes
    """PEM."""
    key: bytes
    """PEM."""
    authorities: bytes
    """CAs of the control plane's certificate, PEM."""
    node: NodeCertificate
    not_before: float
    """Unix seconds."""

    @property
    def is_by_newest(self) -> bool:
        """Whether the first of the CAs, the one that issues, issued the certificate."""
        newest = x509.load_pem_x509_certificates(self.authorities)[0]
        try:
            x509.load_pem_x509_certificate(self.certificate).verify_directly_issued_by(newest)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def channel(self) -> grpc.ChannelCredentials:
        """The credentials of connections to the control plane."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


@dataclass(frozen=True, slots=True)
class Trusted:
    """The control plane that a node joined."""

    chain: KeyChain
    root: str
    """Id of the root that it was told to trust at first."""
    join: str
    """HOST:PORT."""
    link: str
    """HOST:PORT."""


class IdentityFolder:
    """The files of an identity."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> Identity | None:
        """The identity; None if this node has not joined.

        Raises:
            StoreError: a file cannot be read, or is not what it should be.
        """
        if not (self.folder / _CERTIFICATE).exists():
            return None
        # Whom to trust is in the signed key sets; the file of CAs beside them is for people.
        authorities = self.trusted().chain.current.bundle
        return read_identity(self.folder / _CERTIFICATE, self.folder / _KEY, authorities.encode())

    @property
    def is_broken(self) -> bool:
        """Whether this node has joined, and has no certificate any more."""
        return (self.folder / _TRUST).exists() and not (self.folder / _CERTIFICATE).exists()

    def trusted(self) -> Trusted:
        """The control plane that this node joined.

        Raises:
            StoreError: the file cannot be read, or is not what it should be.
        """
        file = self.folder / _TRUST
        try:
            value = json.loads(file.read_bytes())
            signed = [Signed.from_plain(item) for item in value["key_sets"]]
            trusted = Trusted(KeyChain.of(signed, value["root"]), value["root"], value["join"], value["link"])
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{file}: cannot be used: {error}; remove the folder and join again") from None
        return trusted

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The key. Makes it on first use: a request to join that is repeated has the same one.

        Raises:
            StoreError: it cannot be read or written.
        """
        file = self.folder / _KEY
        try:
            if not file.exists():
                made = ec.generate_private_key(ec.SECP256R1())
                write_private(file, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            key = load_pem_private_key(file.read_bytes(), None)
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise StoreError(f"{file}: not a private key: {error}; remove the folder and join again") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StoreError(f"{file}: not a P-256 key; remove the folder and join again")
        return key

    def request(self) -> str:
        """A certificate request for the key, PEM.

        Raises:
            StoreError: the key cannot be read or written.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.private_key(), hashes.SHA256())
        )
        return request.public_bytes(Encoding.PEM).decode()

    def store(self, certificate: bytes, trusted: Trusted) -> Identity:
        """Write a new certificate and what is trusted.

        Raises:
            StoreError: they cannot be written, or do not belong together.
        """
        try:
            self._write_trusted(trusted)
            write_private(self.folder / _CERTIFICATE, certificate)
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}") from None
        return self._stored()

    def trust(self, chain: KeyChain) -> Identity:
        """Write newer key sets.

        Raises:
            StoreError: they cannot be written.
        """
        trusted = self.trusted()
        try:
            self._write_trusted(Trusted(chain, trusted.root, trusted.join, trusted.link))
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}") from None
        return self._stored()

    def _write_trusted(self, trusted: Trusted) -> None:
        content = {
            "key_sets": [item.plain() for item in trusted.chain.signed],
            "root": trusted.root,
            "join": trusted.join,
            "link": trusted.link,
        }
        write_private(self.folder / _TRUST, json.dumps(content, indent=1).encode())
        write_private(self.folder / _AUTHORITIES, trusted.chain.current.bundle.encode())

    def take_over(self, other: IdentityFolder) -> Identity:
        """Replace everything by the files of another folder, which goes.

        Raises:
            StoreError: they cannot be moved.
        """
        try:
            for name in (_KEY, _TRUST, _AUTHORITIES, _CERTIFICATE):
                (other.folder / name).replace(self.folder / name)
            other.folder.rmdir()
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}") from None
        return self._stored()

    def _stored(self) -> Identity:
        """What was written a moment ago, read back."""
        identity = self.load()
        assert identity is not None
        return identity


def read_identity(cert_file: Path, key_file: Path, authorities: bytes) -> Identity:
    """Read an identity from files.

    Args:
        authorities: CAs of the control plane's certificate, PEM.

    Raises:
        StoreError: one cannot be read, or they are not those of a node.
    """
    try:
        certificate, key = cert_file.read_bytes(), key_file.read_bytes()
        leaf = x509.load_pem_x509_certificate(certificate)
        private = load_pem_private_key(key, None)
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise StoreError(f"{cert_file}, {key_file}: cannot be used: {error}") from None
    not_before = leaf.not_valid_before_utc.timestamp()
    # Its time is looked at elsewhere: an expired one can be renewed.
    node = node_certificate(certificate, not_before)
    if not isinstance(node, NodeCertificate):
        raise StoreError(f"{cert_file}: names no node: it needs one URI spiffe://DOMAIN/region/REGION/node/NAME")
    if private.public_key() != leaf.public_key():
        raise StoreError(f"{key_file}: not the key of {cert_file}")
    return Identity(certificate, key, authorities, node, not_before)


def read_root(file: Path) -> str:
    """Read the id of a root key from its public half (PEM).

    Raises:
        StoreError: the file cannot be read, or is not an Ed25519 public key.
    """
    try:
        key = load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise StoreError(f"{file}: not a public key in PEM (opampctl trust show --pem prints it)") from None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError(f"{file}: not the key of a root: it is not Ed25519")
    return key_id(key.public_bytes(Encoding.Raw, PublicFormat.Raw))

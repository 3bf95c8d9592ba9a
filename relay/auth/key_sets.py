"""Key sets: which CAs nodes trust, signed by a root key that no server holds.

A key set names its own roots. The next one must be signed by a root of the one before and by one of its own, so that a root
can be replaced, and nobody who has only the CA's key can add another CA. Nodes keep the newest one and accept nothing older.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.documents import canonical_json
from relay.ids import sha256

_TYPE = "opamp-keyset"
_CONTEXT = b"opamp-keyset\0"
"""Signed before the payload, so that a signature cannot serve for anything else."""
MAX_BYTES = 256 << 10
_MAX_KEYS = 16


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload and one signature of it."""

    payload: bytes
    key: str
    """Id of the key: SHA-256 of the public key, hex."""
    signature: bytes

    def plain(self) -> dict[str, str]:
        """As JSON, in base64."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "key": self.key,
            "signature": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_plain(cls, value: Any) -> Signed:
        """The reverse of `plain`.

        Raises:
            ValueError: not of this form.
        """
        try:
            payload, signature = (base64.b64decode(value[name], validate=True) for name in ("payload", "signature"))
            key = value["key"]
        except (KeyError, TypeError, binascii.Error):
            raise ValueError("not a signed payload") from None
        if not isinstance(key, str) or len(payload) > MAX_BYTES:
            raise ValueError("not a signed payload")
        return cls(payload, key, signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """What nodes trust."""

    version: int
    """Counts from 1, without gaps."""
    trust_domain: str
    roots: Mapping[str, bytes]
    """Key id → public key (Ed25519, 32 bytes)."""
    authorities: tuple[str, ...]
    """Certificates of CAs, PEM."""

    @property
    def bundle(self) -> str:
        """The certificates as one text, as TLS takes it."""
        return "".join(self.authorities)

    def payload(self) -> bytes:
        """The canonical bytes that are signed."""
        return canonical_json(
            {
                "_type": _TYPE,
                "version": self.version,
                "trust_domain": self.trust_domain,
                "roots": [{"id": key, "key": public.hex()} for key, public in sorted(self.roots.items())],
                "manifest": [],
                "ca": list(self.authorities),
            }
        )


def key_id(public: bytes) -> str:
    """The id of a public key: its SHA-256, hex."""
    return sha256(public).hex()


def sign(key_set: KeySet, root: Ed25519PrivateKey) -> Signed:
    """Sign a key set with a root key."""
    public = root.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    payload = key_set.payload()
    return Signed(payload, key_id(public), root.sign(_CONTEXT + payload))


def read(payload: bytes) -> KeySet:
    """Read a key set. That somebody may have signed it is another question.

    Raises:
        ValueError: it is not a key set.
    """
    try:
        value = json.loads(payload)
        if value["_type"] != _TYPE:
            raise ValueError("it is of another type")
        version, trust_domain, authorities = value["version"], value["trust_domain"], tuple(value["ca"])
        roots = {root["id"]: bytes.fromhex(root["key"]) for root in value["roots"]}
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in authorities]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a key set: {error}") from None
    if not isinstance(version, int) or version < 1 or not isinstance(trust_domain, str) or not trust_domain:
        raise ValueError("not a key set: bad version or trust domain")
    if not 1 <= len(roots) <= _MAX_KEYS or not 1 <= len(certificates) <= _MAX_KEYS:
        raise ValueError("not a key set: too few or too many keys")
    if any(key_id(public) != name for name, public in roots.items()):
        raise ValueError("not a key set: a root's id is not that of its key")
    return KeySet(version, trust_domain, roots, authorities)


def accept(signed: Iterable[Signed], *, held: KeySet | None, root: str = "") -> KeySet:
    """The newest key set of a chain that is to be trusted.

    Args:
        signed: the chain, in any order; the same payload comes once for each signature.
        held: the one that is trusted now; None if there is none.
        root: without `held`: id of a root that must have signed the oldest of them; empty to trust the first one seen.

    Raises:
        ValueError: the chain is broken: it skips a version, forks, or lacks a signature.
    """
    sets = _by_version(signed)
    trusted = held
    for version in sorted(sets):
        key_set, signatures = sets[version]
        if trusted is None:
            _check_first(key_set, signatures, root)
        elif version < trusted.version:
            continue
        elif version == trusted.version:
            if key_set.payload() != trusted.payload():
                raise ValueError(f"key set {version} differs from the one that is trusted")
            continue
        else:
            _check_next(trusted, key_set, signatures)
        trusted = key_set
    if trusted is None:
        raise ValueError("there is no key set")
    return trusted


def _by_version(signed: Iterable[Signed]) -> dict[int, tuple[KeySet, Sequence[Signed]]]:
    sets: dict[int, tuple[KeySet, list[Signed]]] = {}
    for item in signed:
        key_set = read(item.payload)
        known, signatures = sets.setdefault(key_set.version, (key_set, []))
        if known.payload() != key_set.payload():
            raise ValueError(f"there are two key sets {key_set.version}")
        signatures.append(item)
    return {version: (key_set, tuple(signatures)) for version, (key_set, signatures) in sets.items()}


def _check_first(key_set: KeySet, signatures: Sequence[Signed], root: str) -> None:
    wanted = {root: key_set.roots[root]} if root in key_set.roots else {} if root else key_set.roots
    if not _is_signed(signatures, wanted):
        raise ValueError("the key set is not signed by the root that this node was given" if root else "bad signature")


def _check_next(trusted: KeySet, key_set: KeySet, signatures: Sequence[Signed]) -> None:
    if key_set.version != trusted.version + 1:
        raise ValueError(f"key set {key_set.version} does not follow {trusted.version}")
    if key_set.trust_domain != trusted.trust_domain:
        raise ValueError(f"key set {key_set.version} is of another trust domain")
    if not _is_signed(signatures, trusted.roots) or not _is_signed(signatures, key_set.roots):
        raise ValueError(f"key set {key_set.version} is not signed by a root of {trusted.version} and one of its own")


def _is_signed(signatures: Sequence[Signed], roots: Mapping[str, bytes]) -> bool:
    return any(item.key in roots and _verifies(roots[item.key], item) for item in signatures)


def _verifies(public: bytes, signed: Signed) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signed.signature, _CONTEXT + signed.payload)
    except (InvalidSignature, ValueError):
        return False
    return True

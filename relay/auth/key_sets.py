"""Key sets: which CAs nodes trust, and whose policy, signed by a root key that no server holds.

A key set names its own roots. The next one must be signed by a root of the one before and by one of its own, so that a root
can be replaced, and nobody who has only the other keys can add one. Nodes keep the newest one and accept nothing older.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.auth.signing import Purpose, Signed, key_id
from relay.auth.signing import sign as sign_payload
from relay.documents import canonical_json

RESOURCE = "KeySet/trust"
"""The resource by which key sets travel with policy."""
_TYPE = "opamp-keyset"
_MAX_BYTES, _MAX_RESOURCE_BYTES = 256 << 10, 4 << 20
_MAX_KEYS = 16


@dataclass(frozen=True, slots=True)
class KeySet:
    """What nodes trust."""

    version: int
    """Counts from 1, without gaps."""
    trust_domain: str
    roots: Mapping[str, bytes]
    """Key id → public key (Ed25519, 32 bytes)."""
    authorities: tuple[str, ...]
    """Certificates of CAs, PEM; the first one issues."""
    manifests: Mapping[str, bytes] = field(default_factory=dict)
    """Keys that sign policy, like `roots`; empty if policy is not signed."""

    @property
    def bundle(self) -> str:
        """The certificates as one text, as TLS takes it."""
        return "".join(self.authorities)

    @property
    def signs_policy(self) -> bool:
        """Whether policy is signed, so that nodes take no other."""
        return bool(self.manifests)

    def payload(self) -> bytes:
        """The canonical bytes that are signed."""
        return canonical_json(
            {
                "_type": _TYPE,
                "version": self.version,
                "trust_domain": self.trust_domain,
                "roots": _listed(self.roots),
                "manifest": _listed(self.manifests),
                "ca": list(self.authorities),
            }
        )


def _listed(keys: Mapping[str, bytes]) -> list[dict[str, str]]:
    return [{"id": key, "key": public.hex()} for key, public in sorted(keys.items())]


def sign(key_set: KeySet, root: Ed25519PrivateKey) -> Signed:
    """Sign a key set with a root key."""
    return sign_payload(Purpose.KEY_SET, key_set.payload(), root)


def read(payload: bytes) -> KeySet:
    """Read a key set. That somebody may have signed it is another question.

    Raises:
        ValueError: it is not a key set.
    """
    if len(payload) > _MAX_BYTES:
        raise ValueError("not a key set: too long")
    try:
        value = json.loads(payload)
        if value["_type"] != _TYPE:
            raise ValueError("it is of another type")
        version, trust_domain, authorities = value["version"], value["trust_domain"], tuple(value["ca"])
        roots, manifests = ({k["id"]: bytes.fromhex(k["key"]) for k in value[name]} for name in ("roots", "manifest"))
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in authorities]
    except Exception as error:  # certificates of strangers raise many kinds of errors
        raise ValueError(f"not a key set: {error}") from None
    if not isinstance(version, int) or version < 1 or not isinstance(trust_domain, str) or not trust_domain:
        raise ValueError("not a key set: bad version or trust domain")
    if not (1 <= len(roots) <= _MAX_KEYS and 1 <= len(certificates) <= _MAX_KEYS and len(manifests) <= _MAX_KEYS):
        raise ValueError("not a key set: too few or too many keys")
    if any(key_id(public) != name for name, public in [*roots.items(), *manifests.items()]):
        raise ValueError("not a key set: the id of a key is not that of its value")
    return KeySet(version, trust_domain, roots, authorities, manifests)


def accept(signed: Iterable[Signed], *, held: KeySet | None, root: str = "") -> KeySet:
    """The newest key set of a chain that is to be trusted.

    Args:
        signed: the chain, in any order; the same payload comes once for each signature.
        held: the one that is trusted now; None if there is none.
        root: without `held`: id of a root; trust begins at the first key set that names and is signed by it. Empty to trust
            the first one seen.

    Raises:
        ValueError: the chain is broken: it skips a version, forks, or lacks a signature.
    """
    return _accepted(signed, held, root)[0]


def _accepted(signed: Iterable[Signed], held: KeySet | None, root: str) -> tuple[KeySet, tuple[Signed, ...]]:
    """(the newest key set, the signatures that count of those after `held`). See `accept`."""
    sets = _by_version(signed)
    trusted, counting = held, []
    for version in sorted(sets):
        key_set, signatures = sets[version]
        roots = key_set.roots
        if trusted is None:
            roots = {root: roots[root]} if root in roots else {} if root else roots
            trusted = _first(key_set, signatures, roots, is_told=bool(root))
            if trusted is None:
                continue
        elif version < trusted.version:
            continue
        elif version == trusted.version:
            if key_set.payload() != trusted.payload():
                raise ValueError(f"key set {version} differs from the one that is trusted")
            continue
        else:
            _check_next(trusted, key_set, signatures)
            roots = {**trusted.roots, **roots}
            trusted = key_set
        counting += [item for item in signatures if item.is_by(Purpose.KEY_SET, roots)]
    if trusted is None:
        raise ValueError("no key set is signed by the root that was given" if sets else "there is no key set")
    return trusted, tuple(counting)


def _by_version(signed: Iterable[Signed]) -> dict[int, tuple[KeySet, Sequence[Signed]]]:
    sets: dict[int, tuple[KeySet, list[Signed]]] = {}
    for item in signed:
        key_set = read(item.payload)
        known, signatures = sets.setdefault(key_set.version, (key_set, []))
        if known.payload() != key_set.payload():
            raise ValueError(f"there are two key sets {key_set.version}")
        signatures.append(item)
    return {version: (key_set, tuple(signatures)) for version, (key_set, signatures) in sets.items()}


def _first(
    key_set: KeySet, signatures: Sequence[Signed], roots: Mapping[str, bytes], *, is_told: bool
) -> KeySet | None:
    """The key set, if trust may begin with it; None to look at the next one. Raises ValueError if it is not signed.

    Args:
        roots: of those, one must have signed it.
        is_told: whether somebody said which root that is.
    """
    if _is_signed(signatures, roots):
        return key_set
    if is_told:
        return None
    raise ValueError("bad signature")


def _check_next(trusted: KeySet, key_set: KeySet, signatures: Sequence[Signed]) -> None:
    if key_set.version != trusted.version + 1:
        raise ValueError(f"key set {key_set.version} does not follow {trusted.version}")
    if key_set.trust_domain != trusted.trust_domain:
        raise ValueError(f"key set {key_set.version} is of another trust domain")
    if not _is_signed(signatures, trusted.roots) or not _is_signed(signatures, key_set.roots):
        raise ValueError(f"key set {key_set.version} is not signed by a root of {trusted.version} and one of its own")


def _is_signed(signatures: Sequence[Signed], roots: Mapping[str, bytes]) -> bool:
    return any(item.is_by(Purpose.KEY_SET, roots) for item in signatures)


@dataclass(frozen=True, slots=True)
class KeyChain:
    """The key sets that somebody trusts."""

    signed: tuple[Signed, ...]
    """All of them with their signatures, oldest first."""
    current: KeySet
    """The newest one."""

    @classmethod
    def of(cls, signed: Iterable[Signed], root: str = "") -> KeyChain:
        """The key sets of a control plane that is not known yet.

        Args:
            root: id of the root to trust; empty to trust the first one seen.

        Raises:
            ValueError: they are not in order.
        """
        current, counting = _accepted(signed, None, root)
        return cls(counting, current)

    def extended(self, signed: Iterable[Signed]) -> KeyChain:
        """With the newer ones of another chain.

        Raises:
            ValueError: they do not follow, or belong to another control plane.
        """
        current, newer = _accepted(signed, self.current, "")
        return KeyChain((*self.signed, *newer), current) if newer else self

    def names_root(self, root: str) -> bool:
        """Whether a root signs, or signed, for this control plane."""
        return any(root in read(item.payload).roots for item in self.signed)

    def resource(self) -> bytes:
        """The payload by which they travel with policy."""
        return canonical_json({"key_sets": [item.plain() for item in self.signed]})

    def is_signed(self, purpose: Purpose, signed: Signed) -> bool:
        """Whether a payload of policy is signed by a key of the newest set."""
        return signed.is_by(purpose, self.current.manifests)

    def was_signed(self, purpose: Purpose, signed: Signed) -> bool:
        """Whether a payload of policy is signed by a key of any of the sets."""
        return any(signed.is_by(purpose, read(item.payload).manifests) for item in self.signed)


def signed_of(resource: bytes) -> tuple[Signed, ...]:
    """The key sets in a payload that `KeyChain.resource` made. That they are to be trusted is another question.

    Raises:
        ValueError: there are none in it.
    """
    if len(resource) > _MAX_RESOURCE_BYTES:
        raise ValueError(f"{RESOURCE} is too long")
    try:
        return tuple(Signed.from_plain(item) for item in json.loads(resource)["key_sets"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{RESOURCE} cannot be read") from None

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.auth.key_sets import KeyChain, KeySet, accept, read, sign, signed_of
from relay.auth.signing import Purpose, Signed, key_id
from relay.auth.signing import sign as sign_payload
from relay.control.trust.certificates import new_authority

CA, OTHER_CA = (new_authority("example", 1_800_000_000).certificate.decode() for _ in range(2))
ROOT, NEXT, ATTACKER = (Ed25519PrivateKey.generate() for _ in range(3))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def roots(*keys: Ed25519PrivateKey) -> dict[str, bytes]:
    return {key_id(public(key)): public(key) for key in keys}


FIRST = KeySet(1, "example", roots(ROOT), (CA,))
SECOND = KeySet(2, "example", roots(ROOT), (CA, OTHER_CA))
MOVED = KeySet(3, "example", roots(NEXT), (OTHER_CA,))
CHAIN = [sign(FIRST, ROOT), sign(SECOND, ROOT), sign(MOVED, ROOT), sign(MOVED, NEXT)]
ROOT_ID = key_id(public(ROOT))


def test_chain_is_followed_to_its_end() -> None:
    assert accept(CHAIN, held=None, root=ROOT_ID) == MOVED
    assert accept(reversed(CHAIN), held=None) == MOVED
    assert accept(CHAIN[1:], held=FIRST) == MOVED
    assert accept(CHAIN, held=SECOND) == MOVED
    assert accept(CHAIN[:1], held=SECOND) == SECOND, "nothing older"
    assert accept([], held=SECOND) == SECOND
    assert Signed.from_plain(json.loads(json.dumps(CHAIN[0].plain()))) == CHAIN[0]


def test_bundle_holds_every_certificate() -> None:
    certificates = x509.load_pem_x509_certificates(SECOND.bundle.encode())
    assert [c.public_bytes(Encoding.PEM).decode() for c in certificates] == [CA, OTHER_CA]


def forged(signed: Signed) -> Signed:
    return dataclasses.replace(signed, signature=bytes(64))


@pytest.mark.parametrize(
    ("signed", "held", "root", "reason"),
    [
        ([], None, "", "there is no key set"),
        ([sign(FIRST, ROOT)], None, "f" * 64, "no key set is signed by the root that was given"),
        ([sign(FIRST, ATTACKER)], None, "", "bad signature"),
        ([forged(CHAIN[0])], None, ROOT_ID, "no key set is signed by the root"),
        ([dataclasses.replace(CHAIN[0], signature=b"short")], None, ROOT_ID, "no key set is signed by the root"),
        ([CHAIN[2]], FIRST, "", "key set 3 does not follow 1"),
        (CHAIN[:3], None, ROOT_ID, "key set 3 is not signed by a root of 2 and one of its own"),
        ([*CHAIN[:2], CHAIN[3]], None, ROOT_ID, "key set 3 is not signed by a root of 2"),
        ([sign(dataclasses.replace(SECOND, trust_domain="evil"), ROOT)], FIRST, "", "another trust domain"),
        ([sign(dataclasses.replace(SECOND, authorities=(OTHER_CA,)), ATTACKER)], FIRST, "", "is not signed by a root"),
        ([sign(dataclasses.replace(FIRST, authorities=(OTHER_CA,)), ROOT)], FIRST, "", "differs from the one that is"),
        ([CHAIN[1], sign(dataclasses.replace(SECOND, authorities=(CA,)), ROOT)], FIRST, "", "two key sets 2"),
    ],
)
def test_attack_broken_chains(signed: list[Signed], held: KeySet | None, root: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        accept(signed, held=held, root=root)


def payload(**changes: Any) -> bytes:
    return json.dumps({**json.loads(FIRST.payload()), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        payload(_type="other"),
        payload(version=0),
        payload(version="1"),
        payload(trust_domain=""),
        payload(trust_domain=7),
        payload(roots=[]),
        payload(roots=[{"id": "a", "key": "00"}]),
        payload(roots=[7]),
        payload(ca=[]),
        payload(ca=["x"]),
        payload(ca=[7]),
        payload(ca=[CA] * 17),
        payload(manifest=7),
        b" " * (256 << 10) + b"{}",
    ],
)
def test_what_is_no_key_set(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a key set"):
        read(content)


@pytest.mark.parametrize(
    "value",
    [None, {}, {"payload": "!", "key": "a", "signature": ""}, {"payload": "", "key": 7, "signature": ""}, [7]],
)
def test_what_is_not_signed(value: Any) -> None:
    with pytest.raises(ValueError, match="not a signed payload"):
        Signed.from_plain(value)


# ---- chains


def test_chain_begins_at_the_root_that_was_given() -> None:
    """A join token names the root of its day: a former one that was stolen cannot mislead who joins later."""
    later = KeySet(4, "example", roots(NEXT), (OTHER_CA,))
    chain = [*CHAIN, sign(later, NEXT)]
    assert accept(chain, held=None, root=key_id(public(NEXT))) == later
    forked = dataclasses.replace(MOVED, authorities=(CA,))
    with pytest.raises(ValueError, match="no key set is signed by the root"):
        accept([*CHAIN[:2], sign(forked, ROOT)], held=None, root=key_id(public(NEXT)))


def test_chain_grows_by_what_follows() -> None:
    chain = KeyChain.of(CHAIN[:1], ROOT_ID)
    assert chain.current == FIRST
    grown = chain.extended(CHAIN)
    assert (grown.current, grown.signed) == (MOVED, tuple(CHAIN))
    assert grown.extended(CHAIN[:2]) is grown, "nothing newer"
    assert KeyChain.of(signed_of(grown.resource()), ROOT_ID) == grown
    skipped = chain.extended(CHAIN[:2]).extended(CHAIN[2:])
    assert KeyChain.of(skipped.signed, ROOT_ID) == grown, "it can be read again with the first root"
    with pytest.raises(ValueError, match="does not follow"):
        chain.extended(CHAIN[2:])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"key_sets": 1}', b'{"key_sets": [{}]}', b"[" * 100_000])
def test_resource_that_holds_no_key_sets(content: bytes) -> None:
    with pytest.raises(ValueError, match="KeySet/trust cannot be read"):
        signed_of(content)


def test_policy_is_signed_by_keys_of_the_newest_set() -> None:
    first = dataclasses.replace(FIRST, manifests=roots(ATTACKER))
    second = dataclasses.replace(SECOND, manifests=roots(NEXT))
    assert first.signs_policy
    assert not FIRST.signs_policy
    chain = KeyChain.of([sign(first, ROOT), sign(second, ROOT)])
    assert read(second.payload()) == second
    former, current = (sign_payload(Purpose.MANIFEST, b"m", key) for key in (ATTACKER, NEXT))
    assert chain.is_signed(Purpose.MANIFEST, current)
    assert not chain.is_signed(Purpose.MANIFEST, former)
    assert not chain.is_signed(Purpose.FRESHNESS, current)
    assert chain.was_signed(Purpose.MANIFEST, former)
    assert not chain.was_signed(Purpose.MANIFEST, sign_payload(Purpose.MANIFEST, b"m", ROOT)), "a root signs no policy"


def test_attack_key_sets_from_before_the_root_that_was_given() -> None:
    forged = dataclasses.replace(SECOND, manifests=roots(ATTACKER), roots=roots(ATTACKER))
    chain = KeyChain.of([sign(forged, ATTACKER), *CHAIN[2:]], key_id(public(NEXT)))
    assert [read(item.payload).version for item in chain.signed] == [3]
    assert not chain.was_signed(Purpose.MANIFEST, sign_payload(Purpose.MANIFEST, b"m", ATTACKER))
    junk = dataclasses.replace(CHAIN[0], signature=bytes(64))
    assert KeyChain.of([junk, CHAIN[0]], ROOT_ID).signed == (CHAIN[0],), "signatures that do not count are not kept"


def test_chain_knows_its_roots() -> None:
    chain = KeyChain.of(CHAIN, ROOT_ID)
    assert all(map(chain.names_root, (ROOT_ID, key_id(public(NEXT)))))
    assert not chain.names_root(key_id(public(ATTACKER)))


def test_attack_certificates_that_make_the_parser_stumble() -> None:
    der = bytearray(x509.load_pem_x509_certificate(CA.encode()).public_bytes(Encoding.DER))
    at = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[at] = 9  # a version of X.509 that there is not
    pem = "-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)).decode() + "-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match="not a key set"):
        read(payload(ca=[pem]))


def test_attack_resource_of_key_sets_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        signed_of(b" " * (5 << 20))

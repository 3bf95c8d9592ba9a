"""Key sets and their rotation, as values."""

from __future__ import annotations

import dataclasses
import json

import pytest

from relay.auth.key_sets import read, sign
from relay.auth.signing import key_id
from relay.control.trust.rotation import (
    CA,
    FORMER_CA,
    MANIFEST,
    PROPOSED,
    Keys,
    Proposal,
    Rotation,
    following,
    sealed_as,
    version_of,
)
from tests.auth.test_key_sets import CA as FIRST_CA
from tests.auth.test_key_sets import FIRST, NEXT, OTHER_CA, ROOT, public, roots

KEYS = Keys((sign(FIRST, ROOT),), {CA: b"ca", MANIFEST: b"manifest"})


def proposed(rotation: Rotation, payloads: tuple[bytes, ...], **secrets: bytes) -> Keys:
    return KEYS.with_proposal(Proposal(rotation, payloads), secrets)


def test_next_key_set_changes_what_is_named_alone() -> None:
    (payload,) = following(FIRST, manifests=roots(NEXT))
    assert read(payload) == dataclasses.replace(FIRST, version=2, manifests=roots(NEXT))
    (payload,) = following(FIRST, roots=roots(NEXT))
    assert read(payload) == dataclasses.replace(FIRST, version=2, roots=roots(NEXT))


def test_new_ca_is_first_and_alone_in_the_end() -> None:
    both, closing = (read(payload) for payload in following(FIRST, authority=OTHER_CA))
    assert (both.version, both.authorities) == (2, (OTHER_CA, FIRST_CA))
    assert (closing.version, closing.authorities) == (3, (OTHER_CA,))


def test_signed_proposal_is_adopted_with_its_secrets() -> None:
    (payload,) = following(FIRST, manifests=roots(NEXT))
    keys = proposed(Rotation.MANIFEST, (payload,), **{MANIFEST: b"fresh"})
    assert keys.secrets == {CA: b"ca", MANIFEST: b"manifest", f"{PROPOSED}{MANIFEST}": b"fresh"}
    adopted = keys.adopted(Rotation.MANIFEST, [sign(read(payload), ROOT)], 5)
    assert adopted.secrets == {CA: b"ca", MANIFEST: b"fresh"}
    assert (adopted.proposal, adopted.rotated_ms, [version_of(s) for s in adopted.key_sets]) == (None, 0, [1, 2])


def test_ca_in_use_is_kept_until_the_rotation_is_closed() -> None:
    payloads = following(FIRST, authority=OTHER_CA)
    adopted = proposed(Rotation.CA, payloads, **{CA: b"fresh"}).adopted(
        Rotation.CA, [sign(read(payload), ROOT) for payload in payloads], 5
    )
    assert (adopted.secrets[CA], adopted.secrets[FORMER_CA], adopted.rotated_ms) == (b"fresh", b"ca", 5)
    closed = adopted.closed()
    assert (closed.closing, FORMER_CA in closed.secrets) == ((), False)
    assert [version_of(s) for s in closed.key_sets] == [1, 2, 3]
    lost = dataclasses.replace(KEYS, secrets={}).with_proposal(Proposal(Rotation.CA, payloads), {CA: b"fresh"})
    without = lost.adopted(Rotation.CA, [sign(read(payload), ROOT) for payload in payloads], 5)
    assert without.secrets == {CA: b"fresh"}, "there was none to keep"


def test_another_proposal_takes_the_place_of_the_first() -> None:
    (first,), (second,) = following(FIRST, manifests=roots(ROOT)), following(FIRST, manifests=roots(NEXT))
    keys = proposed(Rotation.MANIFEST, (first,), **{MANIFEST: b"1"})
    keys = keys.with_proposal(Proposal(Rotation.MANIFEST, (second,)), {MANIFEST: b"2"})
    assert keys.secrets[f"{PROPOSED}{MANIFEST}"] == b"2"
    with pytest.raises(ValueError, match="somebody else began a rotation"):
        keys.adopted(Rotation.MANIFEST, [sign(read(first), ROOT)], 0)


def test_attack_proposal_with_bad_signatures() -> None:
    (payload,) = following(FIRST, roots=roots(NEXT))
    keys = proposed(Rotation.ROOT, (payload,))
    for signers in ([ROOT], [NEXT]):
        with pytest.raises(ValueError, match="is not signed by a root of 1 and one of its own"):
            keys.adopted(Rotation.ROOT, [sign(read(payload), signer) for signer in signers], 0)
    assert keys.adopted(Rotation.ROOT, [sign(read(payload), signer) for signer in (ROOT, NEXT)], 0).proposal is None
    with pytest.raises(ValueError, match="no key set for a rotation of ca waits"):
        keys.adopted(Rotation.CA, [], 0)
    with pytest.raises(ValueError, match="no key set for a rotation of root waits"):
        KEYS.adopted(Rotation.ROOT, [], 0)
    both = following(FIRST, authority=OTHER_CA)
    waiting = proposed(Rotation.CA, both)
    with pytest.raises(ValueError, match="other key sets were signed"):
        waiting.adopted(Rotation.CA, [sign(read(both[0]), ROOT)], 0)


def test_plain_values_round_trip() -> None:
    payloads = following(FIRST, authority=OTHER_CA)
    keys = proposed(Rotation.CA, payloads, **{CA: b"fresh"}).with_generation("eu").with_generation("eu")
    keys = dataclasses.replace(keys, closing=(sign(FIRST, ROOT),), rotated_ms=7, downloads_ms=8)
    assert keys.generations == {"eu": 2}
    plain = json.loads(json.dumps(keys.plain()))
    assert Keys.from_plain([item.plain() for item in keys.key_sets], plain, keys.secrets) == keys
    assert Keys.from_plain([], {}, {}) == Keys()
    assert [r.value for r in Rotation if not r.is_signed] == ["downloads", "master"]
    assert key_id(public(ROOT)) in FIRST.roots


def test_secrets_keep_the_name_they_were_encrypted_under() -> None:
    assert [sealed_as(name) for name in (CA, FORMER_CA, f"{PROPOSED}{CA}")] == [CA] * 3

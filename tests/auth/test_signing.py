from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.auth.signing import Purpose, Signed, key_id, public_bytes, sign

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = public_bytes(KEY)
KEYS = {key_id(PUBLIC): PUBLIC}


def test_signature_is_of_one_payload_for_one_purpose() -> None:
    signed = sign(Purpose.MANIFEST, b"payload", KEY)
    assert signed.is_by(Purpose.MANIFEST, KEYS)
    assert not signed.is_by(Purpose.FRESHNESS, KEYS)
    assert not signed.is_by(Purpose.MANIFEST, {})
    assert not dataclasses.replace(signed, payload=b"payload2").is_by(Purpose.MANIFEST, KEYS)
    assert not dataclasses.replace(signed, signature=b"short").is_by(Purpose.MANIFEST, KEYS)
    assert not signed.is_by(Purpose.MANIFEST, {key_id(PUBLIC): b"short"})
    forged = dataclasses.replace(sign(Purpose.MANIFEST, b"payload", OTHER), key=key_id(PUBLIC))
    assert not forged.is_by(Purpose.MANIFEST, KEYS)
    assert Signed.from_plain(signed.plain()) == signed


@pytest.mark.parametrize(
    "value", [None, {}, {"payload": "%", "key": "a", "signature": ""}, {"payload": "", "key": 1, "signature": ""}]
)
def test_value_that_is_not_signed(value: object) -> None:
    with pytest.raises(ValueError, match="not a signed payload"):
        Signed.from_plain(value)

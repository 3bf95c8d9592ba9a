from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.secrets import SESSION_FORM, TOKEN_FORM, SecretForm, digest_of, id_of, person_digest

FORM = SecretForm("opamp_")
KEY = FORM.make(bytes(range(FORM.chance_bytes)))


def test_form() -> None:
    assert len(KEY) == len("opamp_") + 32
    assert KEY.startswith("opamp_")
    assert FORM.fits(KEY)
    assert FORM.chance_bytes == 52
    assert SecretForm("opampt_", 43).chance_bytes == 74


@given(st.binary(min_size=52, max_size=52))
def test_what_is_made_fits(chance: bytes) -> None:
    assert FORM.fits(FORM.make(chance))


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_one_changed_character_is_noticed(position: int, character: str) -> None:
    changed = KEY[:position] + character + KEY[position + 1 :]
    assert FORM.fits(changed) is (changed == KEY)


@pytest.mark.parametrize("text", ["", "opamp_", KEY[:-1], KEY + "0", KEY.upper(), " " + KEY[1:]])
def test_other_texts_do_not_fit(text: str) -> None:
    assert not FORM.fits(text)


def test_token_of_a_header() -> None:
    token = TOKEN_FORM.make(bytes(TOKEN_FORM.chance_bytes))
    for header in (f"Bearer {token}", f"bearer  {token} "):
        assert person_digest(header, SESSION_FORM, TOKEN_FORM) == (TOKEN_FORM, digest_of(token))
    assert person_digest(f"Bearer {token}", SESSION_FORM) is None
    for other in ("", token, f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {KEY}", f"Bearer {token}{' ' * 8192}"):
        assert person_digest(other, TOKEN_FORM) is None, other


def test_wrong_amount_of_chance() -> None:
    with pytest.raises(ValueError, match="expected 52 random bytes, not 51"):
        FORM.make(bytes(51))


@pytest.mark.parametrize("prefix", ["", "a-b", "é", "a" * 33, "a b"])
def test_bad_prefix(prefix: str) -> None:
    with pytest.raises(ValueError, match="the prefix must be"):
        SecretForm(prefix)


def test_too_short() -> None:
    with pytest.raises(ValueError, match="at least 28"):
        SecretForm("opamp_", 27)


def test_id() -> None:
    digest = digest_of(KEY)
    assert id_of(digest) == f"key-{digest.hex()[:10]}"
    assert id_of(digest, "token").startswith("token-")

"""Opaque credentials: API keys, people's tokens, sessions. `PREFIX` + random base62 + CRC-32 in base62.

The checksum tells a mistyped credential, and a secret that a scanner found, from a real one without a look-up. What is
stored is the SHA-256 alone: the random part has so much entropy that no slow hash is needed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from relay.ids import sha256

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHECK_CHARS = 6
_ID_DIGITS = 10
_DRAWN_BITS = 16
"""Bits of chance for a character: its bias is below a thousandth of a bit."""
_MAX_HEADER_CHARS = 8 << 10
MAX_PREFIX_CHARS = 32
MIN_RANDOM_CHARS = 22
"""128 bits."""


@dataclass(frozen=True, slots=True)
class SecretForm:
    """The form of one kind of credential."""

    prefix: str
    length: int = 32
    """Characters behind the prefix, checksum included."""

    def __post_init__(self) -> None:
        if not 0 < len(self.prefix) <= MAX_PREFIX_CHARS or not all(c in _ALPHABET or c == "_" for c in self.prefix):
            raise ValueError(f"the prefix must be 1 to {MAX_PREFIX_CHARS} letters, digits and underscores")
        if self.length < MIN_RANDOM_CHARS + _CHECK_CHARS:
            raise ValueError(f"the length must be at least {MIN_RANDOM_CHARS + _CHECK_CHARS}")

    @property
    def chance_bytes(self) -> int:
        """How many random bytes `make` needs."""
        return (self.length - _CHECK_CHARS) * _DRAWN_BITS // 8

    def make(self, chance: bytes) -> str:
        """Make a credential.

        Args:
            chance: `chance_bytes` random bytes.

        Raises:
            ValueError: not so many.
        """
        if len(chance) != self.chance_bytes:
            raise ValueError(f"expected {self.chance_bytes} random bytes, not {len(chance)}")
        drawn = (int.from_bytes(chance[i : i + 2], "big") for i in range(0, len(chance), 2))
        body = self.prefix + "".join(_ALPHABET[number * len(_ALPHABET) >> _DRAWN_BITS] for number in drawn)
        return body + _checksum(body)

    def fits(self, text: str) -> bool:
        """Whether a text has this form, and its checksum is right."""
        if len(text) != len(self.prefix) + self.length or not text.startswith(self.prefix) or not text.isascii():
            return False
        body = text[:-_CHECK_CHARS]
        return _checksum(body) == text[-_CHECK_CHARS:]


TOKEN_FORM, SESSION_FORM = SecretForm("opampt_", 43), SecretForm("opamps_", 43)
"""Tokens of people, and sessions of people who log in at an OpenID provider."""


def person_digest(authorization: str, *forms: SecretForm) -> tuple[SecretForm, bytes] | None:
    """(form, digest) of the person's credential in an `Authorization` header (RFC 6750, section 2.1); None: it holds none.

    Args:
        forms: the forms that are accepted.
    """
    if len(authorization) > _MAX_HEADER_CHARS:
        return None
    scheme, _, secret = authorization.partition(" ")
    token = secret.strip()
    if scheme.lower() != "bearer":
        return None
    return next(((form, digest_of(token)) for form in forms if form.fits(token)), None)


def digest_of(secret: str) -> bytes:
    """The SHA-256 that a credential is looked up by."""
    return sha256(secret.encode())


def id_of(digest: bytes, kind: str = "key") -> str:
    """The name by which people refer to a credential: `key-` and ten digits of its digest."""
    return f"{kind}-{digest.hex()[:_ID_DIGITS]}"


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECK_CHARS):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

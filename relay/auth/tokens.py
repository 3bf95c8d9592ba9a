"""JSON Web Tokens (RFC 7519): the keys that they are verified with, and what they must say.

The algorithm follows from the type of the key, never from the token alone: an HMAC over a public key proves nothing.
Headers that bring a key (`jku`, `x5u`, `jwk`) are ignored.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from relay.auth.principal import Method, Principal, Reason, is_subject, label_problem
from relay.ids import sha256

MAX_TOKEN_BYTES = 8 << 10
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
_ID_DIGITS = 10
MAX_KEYS = 100
"""Keys of one set."""
_UNCHECKED = {"verify_signature": True, "verify_exp": False, "verify_nbf": False, "verify_iat": False,
              "verify_aud": False, "verify_iss": False, "verify_sub": False, "verify_jti": False}  # fmt: skip
"""PyJWT verifies the signature; claims are checked here, by the caller's clock."""
_JWT = jwt.PyJWT()
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key that tokens are verified with."""

    id: str
    """`kid`; empty for a key that has none, which is tried for every token."""
    key: bytes | PublicKey
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say."""

    issuer: str = ""
    """`iss`; empty accepts any."""
    audience: str = ""
    """One of `aud`; empty accepts any."""
    lifetime_s: float = 86400.0
    """The longest time from `iat` to `exp`."""
    leeway_s: float = 60.0
    """How far clocks may be apart."""
    required: tuple[str, ...] = ("sub", "exp", "iat")
    agent_id_claim: str = "sub"
    """The claim that proves an agent id; empty where tokens are shared by many agents."""
    labels_claim: str = "labels"


def secret_key(content: bytes) -> VerificationKey:
    """The key of tokens signed with HS256.

    Args:
        content: of the file; one newline at its end is not part of the secret.

    Raises:
        ValueError: it is too short.
    """
    secret = content.removesuffix(b"\n").removesuffix(b"\r") if content.endswith(b"\n") else content
    if secret.lstrip().startswith((b"-----BEGIN", b"ssh-")):
        raise ValueError("this is a key of another kind, not a secret: anybody may know a public key")
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret has {len(secret)} bytes, must have at least {MIN_SECRET_BYTES}")
    return VerificationKey("", secret, ("HS256",))


def public_key(pem: bytes) -> VerificationKey:
    """The key of tokens signed with RS256, PS256, ES256 or EdDSA.

    Raises:
        ValueError: not a PEM public key, or not of a kind that is accepted.
    """
    key = load_pem_public_key(pem)
    return VerificationKey("", *_accepted(key))


def _accepted(key: Any) -> tuple[PublicKey, tuple[str, ...]]:
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"the RSA key has {key.key_size} bits, must have at least {MIN_RSA_BITS}")
        return key, ("RS256", "PS256")
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key, ("ES256",)
    if isinstance(key, Ed25519PublicKey):
        return key, ("EdDSA",)
    raise ValueError("the key must be RSA, P-256 or Ed25519")


def key_set(document: Any) -> tuple[VerificationKey, ...]:
    """The usable keys of a JSON Web Key Set (RFC 7517, section 5); others, symmetric ones included, are left out.

    Raises:
        ValueError: not a key set, or one with more than `MAX_KEYS` keys, or without a usable one.
    """
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("not a JSON Web Key Set")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"{len(entries)} keys are more than the maximum, {MAX_KEYS}")
    keys = tuple(key for entry in entries if (key := _set_key(entry)) is not None)
    if not keys:
        raise ValueError("the key set has no RSA, P-256 or Ed25519 key for signatures")
    return keys


def _set_key(entry: Any) -> VerificationKey | None:
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig":
        return None
    try:
        key, algorithms = _accepted(jwt.PyJWK(dict(entry)).key)
    except (ValueError, TypeError, KeyError, jwt.PyJWTError):
        return None
    named = entry.get("alg")
    if named is not None:
        algorithms = tuple(algorithm for algorithm in algorithms if algorithm == named)
    kid = entry.get("kid", "")
    return VerificationKey(kid if isinstance(kid, str) else "", key, algorithms) if algorithms else None


def signed_claims(token: str, keys: Iterable[VerificationKey]) -> Mapping[str, Any] | Reason:
    """The claims of a token that one of some keys signed. What they say is not looked at."""
    if len(token) > MAX_TOKEN_BYTES:
        return Reason.MALFORMED
    header = _header(token)
    if header is None:
        return Reason.MALFORMED
    kid, algorithm = header.get("kid"), header.get("alg")
    reason = Reason.UNKNOWN_KEY
    for key in keys:
        if algorithm not in key.algorithms or (key.id and kid is not None and kid != key.id):
            continue
        try:
            # The only one allowed: what this key's type takes and the token names.
            claims = _JWT.decode(token, key.key, algorithms=[algorithm], options=_UNCHECKED)  # type: ignore[arg-type]
        except jwt.InvalidSignatureError:
            reason = Reason.BAD_SIGNATURE
        except jwt.PyJWTError:
            return Reason.MALFORMED
        else:
            return claims
    return reason


def _header(token: str) -> Mapping[str, Any] | None:
    """The header of a token, to choose a key by; None if it has none. PyJWT checks it once more, with the signature."""
    head, dot, rest = token.partition(".")
    try:
        value = json.loads(base64.b64decode(head + "=" * (-len(head) % 4), b"-_", validate=True))
    except (ValueError, RecursionError):
        return None
    return value if dot and rest.count(".") == 1 and isinstance(value, dict) else None


class TokenVerifier:
    """Verifies tokens with some keys by some rules."""

    def __init__(self, keys: Iterable[VerificationKey], rules: TokenRules) -> None:
        self._keys = tuple(keys)
        self._rules = rules

    def verify(self, token: str, now: float) -> Principal | Reason:
        """Find out whose token this is.

        Args:
            now: Unix seconds.
        """
        claims = signed_claims(token, self._keys)
        if isinstance(claims, Reason):
            return claims
        found = self._check(claims, now)
        if isinstance(found, Principal) and not found.credential_id:
            # So that it can be named, and revoked, although its issuer gave it no id.
            return replace(found, credential_id=sha256(token.encode()).hex()[:_ID_DIGITS])
        return found

    def _check(self, claims: Mapping[str, Any], now: float) -> Principal | Reason:
        rules = self._rules
        if any(claims.get(name) in (None, "") for name in rules.required):
            return Reason.CLAIMS
        expires_at = numeric_date(claims.get("exp"))
        issued_at, not_before = numeric_date(claims.get("iat", now)), numeric_date(claims.get("nbf", 0))
        if expires_at is None or issued_at is None or not_before is None:
            return Reason.CLAIMS
        refused_from = expires_at + rules.leeway_s
        if now >= refused_from:
            return Reason.EXPIRED
        if now < max(issued_at, not_before) - rules.leeway_s:
            return Reason.NOT_YET_VALID
        # A token without `iat` counts as made now, so that its end may be no farther off than a new one's.
        if expires_at - issued_at > rules.lifetime_s:
            return Reason.LIFETIME
        if rules.issuer and claims.get("iss") != rules.issuer:
            return Reason.ISSUER
        if rules.audience and rules.audience not in _texts(claims.get("aud")):
            return Reason.AUDIENCE
        return self._principal(claims, refused_from)

    def _principal(self, claims: Mapping[str, Any], refused_from: float) -> Principal | Reason:
        rules = self._rules
        subject, jti = claims.get("sub"), claims.get("jti", "")
        agent_id = claims.get(rules.agent_id_claim) if rules.agent_id_claim else ""
        labels = claims.get(rules.labels_claim, {}) if rules.labels_claim else {}
        if not is_subject(subject) or not (jti == "" or is_subject(jti)) or label_problem(labels):
            return Reason.CLAIMS
        if rules.agent_id_claim and not is_subject(agent_id):
            return Reason.CLAIMS
        return Principal(str(subject), Method.JWT, str(jti), str(agent_id), dict(labels), refused_from)


def numeric_date(value: Any) -> float | None:
    """A NumericDate (RFC 7519, section 2); None if it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _texts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]

"""What a provider's answers prove, as values. Each refusal is an attack."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key

from relay.auth.openid import (
    Begun,
    NotLoggedIn,
    Person,
    Provider,
    Rules,
    is_loopback_redirect,
    person_of,
    provider_of,
)
from relay.auth.tokens import VerificationKey
from relay.ids import sha256

NOW = 1_800_000_000.0
ISSUER = "https://idp.example"
KEY = ec_key(SECP256R1())
KEYS = (VerificationKey("k1", KEY.public_key(), ("ES256",)),)
RULES = Rules(ISSUER, "opamp")
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
}
PROVIDER = provider_of(DOCUMENT, ISSUER)
BEGUN = Begun("http://127.0.0.1:5/callback", "state", "nonce", "verifier")
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "opamp",
    "sub": "00u1",
    "exp": NOW + 60,
    "iat": NOW,
    "nonce": "nonce",
    "groups": ["platform"],
}


def token(without: str = "", **changes: Any) -> str:
    claims = {key: value for key, value in {**CLAIMS, **changes}.items() if key != without}
    return jwt.encode(claims, KEY, "ES256", {"kid": "k1"})


def person(text: Any, *, rules: Rules = RULES, nonce: str | None = "nonce", now: float = NOW) -> Person:
    return person_of(text, KEYS, rules, nonce=nonce, now=now)


def test_person_is_who_the_claims_name() -> None:
    assert person(token()) == Person(f"{ISSUER}|00u1", "00u1", ("platform",))
    by_mail = Rules(ISSUER, "opamp", "email", "roles")
    found = person(token(email="a@example", email_verified=True, roles="ops"), rules=by_mail)
    assert found == Person(f"{ISSUER}|00u1", "a@example", ("ops",))
    assert person(token(without="groups")).groups == ()
    assert person(token(aud=["opamp", "b"], azp="opamp")).user == "00u1"
    assert person(token(without="nonce"), nonce=None).user == "00u1", "the device grant has none"
    assert person(token(), now=NOW + 119).user == "00u1", "clocks differ"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "sent no ID token"),
        ("garbage", "not signed by the provider"),
        (jwt.encode(CLAIMS, "s" * 32, "HS256"), "not signed by the provider"),
        (jwt.encode(CLAIMS, "", "none"), "not signed by the provider"),
        (jwt.encode(CLAIMS, ec_key(SECP256R1()), "ES256", {"kid": "k1"}), "not signed by the provider"),
        (token(iss="https://evil"), "of another issuer"),
        (token(aud="other"), "for another audience"),
        (token(without="aud"), "for another audience"),
        (token(aud=["opamp", "other"]), "given to another client"),
        (token(azp="other"), "given to another client"),
        (token(without="exp"), "no exp or no iat"),
        (token(without="iat"), "no exp or no iat"),
        (token(exp=NOW - 60), "has expired"),
        (token(iat=NOW + 61), "not valid yet"),
        (token(nonce="other"), "nonce"),
        (token(without="nonce"), "nonce"),
        (token(sub=""), "no usable sub"),
        (token(sub="a\nb"), "no usable sub"),
        (token(groups=7), "not a list of at most"),
        (token(groups=[7]), "not a list of at most"),
        (token(groups=["g"] * 1001), "not a list of at most"),
    ],
)
def test_attack_id_tokens_that_prove_nothing(text: Any, reason: str) -> None:
    with pytest.raises(NotLoggedIn, match=reason):
        person(text)


def test_attack_unverified_mail_address() -> None:
    rules = Rules(ISSUER, "opamp", "email")
    for value in (False, "false", None, 0):
        with pytest.raises(NotLoggedIn, match="not verified"):
            person(token(email="boss@example", email_verified=value), rules=rules)
    with pytest.raises(NotLoggedIn, match="no usable claim email"):
        person(token(), rules=rules)


def test_login_asks_for_a_code_with_pkce() -> None:
    parts = urlsplit(BEGUN.url(PROVIDER, "opamp"))
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    challenge = base64.urlsafe_b64encode(sha256(b"verifier")).decode().rstrip("=")
    assert parts.path == "/auth"
    assert (query["code_challenge"], query["code_challenge_method"]) == (challenge, "S256")
    assert (query["state"], query["nonce"], query["client_id"]) == ("state", "nonce", "opamp")
    assert query["redirect_uri"] == BEGUN.redirect_uri
    tenant = Provider(ISSUER, f"{ISSUER}/auth?p=1", "", "")
    assert "/auth?p=1&response_type=code&" in BEGUN.url(tenant, "opamp")
    assert BEGUN.token_request("c")["code_verifier"] == "verifier"


def test_attack_redirect_of_another_login_or_provider() -> None:
    named = provider_of({**DOCUMENT, "authorization_response_iss_parameter_supported": True}, ISSUER)
    BEGUN.check_redirect(PROVIDER, "state", "")
    BEGUN.check_redirect(named, "state", ISSUER)
    for provider, state, issuer in (
        (PROVIDER, "other", ""),
        (PROVIDER, "", ""),
        (PROVIDER, "ü", ""),
        (PROVIDER, "state", "https://evil"),
        (named, "state", ""),
    ):
        with pytest.raises(NotLoggedIn):
            BEGUN.check_redirect(provider, state, issuer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"issuer": f"{ISSUER}/"}, "not that of the issuer"),
        ({"token_endpoint": None}, "token_endpoint is missing"),
        ({"jwks_uri": "http://idp.example/jwks"}, "jwks_uri is missing, or is neither https"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"device_authorization_endpoint": "http://idp.example/d"}, "device_authorization_endpoint"),
        ({"device_authorization_endpoint": 7}, "device_authorization_endpoint"),
    ],
)
def test_attack_configuration_of_a_provider(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        provider_of({**DOCUMENT, **change}, ISSUER)


def test_configuration_of_a_provider() -> None:
    whole = {
        **DOCUMENT,
        "code_challenge_methods_supported": ["S256"],
        "device_authorization_endpoint": f"{ISSUER}/device",
    }
    assert provider_of(whole, ISSUER).device_endpoint == f"{ISSUER}/device"
    with pytest.raises(ValueError, match="not that of the issuer"):
        provider_of([], ISSUER)


def test_redirects_stay_on_the_persons_machine() -> None:
    for good in ("http://127.0.0.1:5/callback", "http://localhost:65535/callback", "http://[::1]:5/callback"):
        assert is_loopback_redirect(good)
    for bad in (
        "https://127.0.0.1:5/callback", "http://127.0.0.1/callback", "http://evil:5/callback", "http://127.0.0.1:5/",
        "http://127.0.0.1:5/callback?x=1", "http://127.0.0.1:5/callback#x", "http://u@127.0.0.1:5/callback",
        "http://127.0.0.1:99999/callback", "http://[", "", "http://127.0.0.1:0/callback",
    ):  # fmt: skip
        assert not is_loopback_redirect(bad), bad

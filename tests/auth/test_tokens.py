from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from relay.auth.principal import Method, Principal, Reason
from relay.auth.tokens import TokenRules, TokenVerifier, key_set, public_key, secret_key
from relay.ids import sha256
from tests.auth.builders import EC_KEY, ED_KEY, NOW, RSA_KEY, SECRET, public_pem, token

PRIVATE_KEYS = {"RS256": RSA_KEY, "PS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}
HMAC = TokenVerifier([secret_key(SECRET)], TokenRules())


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithms = {
        RSA_KEY: jwt.algorithms.RSAAlgorithm,
        EC_KEY: jwt.algorithms.ECAlgorithm,
        ED_KEY: jwt.algorithms.OKPAlgorithm,
    }
    return {**algorithms[key].to_jwk(key.public_key(), as_dict=True), **more}  # type: ignore[attr-defined]


def test_principal_of_a_token() -> None:
    principal = HMAC.verify(token(jti="t-1", labels={"team": "a"}), NOW)
    assert principal == Principal("agent-001", Method.JWT, "t-1", "agent-001", {"team": "a"}, NOW + 660)


@pytest.mark.parametrize("algorithm", PRIVATE_KEYS)
def test_public_keys(algorithm: str) -> None:
    key = PRIVATE_KEYS[algorithm]
    verifier = TokenVerifier([public_key(public_pem(key))], TokenRules())
    assert isinstance(verifier.verify(token(key, algorithm), NOW), Principal)
    assert isinstance(
        TokenVerifier(key_set({"keys": [jwk(key)]}), TokenRules()).verify(token(key, algorithm), NOW), Principal
    )
    assert verifier.verify(token(), NOW) is Reason.UNKNOWN_KEY


def test_attack_public_key_as_hmac_secret() -> None:
    pem = public_pem(RSA_KEY)
    verifier = TokenVerifier([public_key(pem)], TokenRules())
    header, payload = (part.encode() for part in token().split(".")[:2])
    import hashlib
    import hmac

    signature = base64.urlsafe_b64encode(hmac.digest(pem, header + b"." + payload, hashlib.sha256)).rstrip(b"=")
    assert verifier.verify(b".".join((header, payload, signature)).decode(), NOW) is Reason.UNKNOWN_KEY


def test_attack_algorithm_none() -> None:
    unsigned = jwt.encode({"sub": "agent-001", "iat": NOW, "exp": NOW + 600}, "", "none")
    assert HMAC.verify(unsigned, NOW) is Reason.UNKNOWN_KEY


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_attack_key_brought_along_by_address(name: str) -> None:
    forged = token(b"x" * 32, headers={name: "https://evil.example/keys"})
    assert HMAC.verify(forged, NOW) is Reason.BAD_SIGNATURE


def test_attack_key_brought_along() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    forged = token(other, "ES256", headers={"jwk": jwk(EC_KEY)})
    assert TokenVerifier([public_key(public_pem(EC_KEY))], TokenRules()).verify(forged, NOW) is Reason.BAD_SIGNATURE


def test_attack_critical_header() -> None:
    assert HMAC.verify(token(headers={"crit": ["exp2"], "exp2": 1}), NOW) is Reason.MALFORMED


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "é.é.é", "..", token()[:-10] + "é" * 10, "." * 9000])
def test_not_a_token(text: str) -> None:
    assert HMAC.verify(text, NOW) is Reason.MALFORMED


def test_payload_that_is_no_object() -> None:
    assert HMAC.verify(jwt.api_jws.encode(b"[1]", SECRET, "HS256"), NOW) is Reason.MALFORMED


def test_changed_payload() -> None:
    header, _, signature = token().split(".")
    payload = (
        base64.urlsafe_b64encode(json.dumps({"sub": "x", "iat": NOW, "exp": NOW + 1}).encode()).decode().rstrip("=")
    )
    assert HMAC.verify(f"{header}.{payload}.{signature}", NOW) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"sub": None}, Reason.CLAIMS),
        ({"sub": ""}, Reason.CLAIMS),
        ({"sub": 7}, Reason.CLAIMS),
        ({"sub": "a" * 257}, Reason.CLAIMS),
        ({"iat": None}, Reason.CLAIMS),
        ({"exp": None}, Reason.CLAIMS),
        ({"exp": "soon"}, Reason.CLAIMS),
        ({"exp": True}, Reason.CLAIMS),
        ({"exp": float("inf")}, Reason.CLAIMS),
        ({"exp": 10**400}, Reason.CLAIMS),
        ({"iat": "now"}, Reason.CLAIMS),
        ({"nbf": "now"}, Reason.CLAIMS),
        ({"jti": 7}, Reason.CLAIMS),
        ({"labels": {"region": "us"}}, Reason.CLAIMS),
        ({"labels": 7}, Reason.CLAIMS),
        ({"exp": NOW - 60}, Reason.EXPIRED),
        ({"iat": NOW + 61, "exp": NOW + 700}, Reason.NOT_YET_VALID),
        ({"nbf": NOW + 61}, Reason.NOT_YET_VALID),
        ({"exp": NOW + 86400}, Reason.LIFETIME),
    ],
)
def test_refused_claims(claims: dict[str, Any], reason: Reason) -> None:
    assert HMAC.verify(token(**claims), NOW) is reason


@pytest.mark.parametrize(
    "claims", [{"exp": NOW - 59}, {"iat": NOW + 60}, {"nbf": NOW + 60}, {"iat": NOW - 10.5}, {"exp": NOW - 10 + 86400}]
)
def test_leeway_and_limits(claims: dict[str, Any]) -> None:
    assert isinstance(HMAC.verify(token(**claims), NOW), Principal)


def test_issuer_and_audience() -> None:
    verifier = TokenVerifier([secret_key(SECRET)], TokenRules(issuer="us", audience="agents"))
    assert verifier.verify(token(aud="agents"), NOW) is Reason.ISSUER
    assert verifier.verify(token(iss="us"), NOW) is Reason.AUDIENCE
    assert verifier.verify(token(iss="us", aud=["x"]), NOW) is Reason.AUDIENCE
    for audience in ("agents", ["x", "agents"]):
        assert isinstance(verifier.verify(token(iss="us", aud=audience), NOW), Principal)


def test_token_without_iat_counts_as_made_now() -> None:
    verifier = TokenVerifier([secret_key(SECRET)], TokenRules(required=("sub",), lifetime_s=3600))
    assert isinstance(verifier.verify(token(iat=None), NOW), Principal)
    assert verifier.verify(token(iat=None, exp=NOW + 3601), NOW) is Reason.LIFETIME
    assert verifier.verify(token(exp=None), NOW) is Reason.CLAIMS, "exp is always required"


def test_shared_tokens_prove_no_agent_id() -> None:
    verifier = TokenVerifier([secret_key(SECRET)], TokenRules(agent_id_claim="", labels_claim=""))
    text = token(sub="web", labels=7)
    principal = verifier.verify(text, NOW)
    named = sha256(text.encode()).hex()[:10]
    assert principal == Principal("web", Method.JWT, named, "", {}, NOW + 660), "a token without jti has a name too"


def test_agent_id_from_another_claim() -> None:
    verifier = TokenVerifier([secret_key(SECRET)], TokenRules(agent_id_claim="agent"))
    principal = verifier.verify(token(agent="a-7"), NOW)
    assert isinstance(principal, Principal)
    assert (principal.subject, principal.agent_id) == ("agent-001", "a-7")
    assert verifier.verify(token(), NOW) is Reason.CLAIMS


def test_key_is_chosen_by_its_id() -> None:
    document = {"keys": [jwk(EC_KEY, kid="a"), jwk(RSA_KEY, kid="b", alg="RS256"), jwk(ED_KEY, kid=7)]}
    verifier = TokenVerifier(key_set(document), TokenRules())
    assert isinstance(verifier.verify(token(EC_KEY, "ES256", {"kid": "a"}), NOW), Principal)
    assert isinstance(verifier.verify(token(EC_KEY, "ES256"), NOW), Principal)
    assert isinstance(verifier.verify(token(ED_KEY, "EdDSA", {"kid": "z"}), NOW), Principal), "it has no id"
    assert verifier.verify(token(EC_KEY, "ES256", {"kid": "b"}), NOW) is Reason.UNKNOWN_KEY
    assert verifier.verify(token(RSA_KEY, "PS256", {"kid": "b"}), NOW) is Reason.UNKNOWN_KEY


def test_key_set_leaves_out_what_it_cannot_use() -> None:
    symmetric = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).decode()}
    unusable = [symmetric, jwk(RSA_KEY, use="enc"), jwk(RSA_KEY, alg="RS512"), {"kty": "EC", "crv": "P-384"}, {}, 7]
    assert len(key_set({"keys": [*unusable, jwk(ED_KEY)]})) == 1
    with pytest.raises(ValueError, match="no RSA, P-256 or Ed25519 key"):
        key_set({"keys": unusable})


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}])
def test_not_a_key_set(document: Any) -> None:
    with pytest.raises(ValueError, match="not a JSON Web Key Set"):
        key_set(document)


def test_too_many_keys() -> None:
    with pytest.raises(ValueError, match="101 keys are more than the maximum, 100"):
        key_set({"keys": [jwk(ED_KEY)] * 101})


def test_secret() -> None:
    for end in (b"", b"\n", b"\r\n"):
        assert secret_key(b"x" * 32 + end).key == b"x" * 32
    assert secret_key(b"x" * 32 + b"\n\n").key == b"x" * 32 + b"\n", "one newline is the file's"
    with pytest.raises(ValueError, match="the secret has 31 bytes, must have at least 32"):
        secret_key(b"x" * 31 + b"\n")
    with pytest.raises(ValueError, match="a key of another kind"):
        secret_key(public_pem(RSA_KEY))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (rsa.generate_private_key(65537, 1024), "the RSA key has 1024 bits"),
        (ec.generate_private_key(ec.SECP384R1()), "must be RSA, P-256 or Ed25519"),
    ],
)
def test_keys_that_are_not_accepted(key: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        public_key(public_pem(key))


def test_not_a_public_key() -> None:
    with pytest.raises(ValueError, match=r"."):
        public_key(b"x" * 40)

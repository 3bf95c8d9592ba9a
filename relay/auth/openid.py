"""OpenID Connect (Core 1.0) as a relying party, without I/O: what to ask a provider, and which of its answers to believe.

Authorization code with PKCE (RFC 7636), and the device grant (RFC 8628).
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from relay.auth.principal import Reason, is_subject
from relay.auth.tokens import VerificationKey, numeric_date, signed_claims
from relay.ids import LOOPBACK_NAMES, is_secure_url, sha256

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SCOPE = "openid profile email groups"
"""Providers ignore the scopes that they do not know."""
_LEEWAY_S = 60.0
_MAX_GROUPS = 1_000


class NotLoggedIn(Exception):
    """The provider's answer does not prove who this is; the message says why."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What an OpenID provider says of itself (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    device_endpoint: str = ""
    """Empty if it has none."""
    names_itself: bool = False
    """Whether its redirects say which issuer they are from (RFC 9207)."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who logged in."""

    owner: str
    """ISSUER|SUB."""
    user: str
    groups: tuple[str, ...]


def provider_of(document: Any, issuer: str) -> Provider:
    """Read a provider's configuration.

    Raises:
        ValueError: it is another issuer's, lacks an endpoint or PKCE, or names an endpoint in the clear.
    """
    if not isinstance(document, Mapping) or document.get("issuer") != issuer:
        raise ValueError("the configuration is not that of the issuer in admin.auth.oidc.issuer")
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
        if not isinstance(document.get(name), str) or not is_secure_url(document[name]):
            raise ValueError(f"{name} is missing, or is neither https nor on loopback")
    methods = document.get("code_challenge_methods_supported")
    if isinstance(methods, Sequence) and "S256" not in methods:
        raise ValueError("it does not support PKCE with S256")
    device = document.get("device_authorization_endpoint", "")
    if not isinstance(device, str) or (device and not is_secure_url(device)):
        raise ValueError("device_authorization_endpoint is neither https nor on loopback")
    names_itself = document.get("authorization_response_iss_parameter_supported") is True
    return Provider(
        issuer,
        document["authorization_endpoint"],
        document["token_endpoint"],
        document["jwks_uri"],
        device,
        names_itself,
    )


def is_loopback_redirect(uri: str) -> bool:
    """Whether a browser may be sent back there: to a program on the person's own machine (RFC 8252, section 7.3)."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return False
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    return (
        parts.scheme == "http"
        and parts.hostname in LOOPBACK_NAMES
        and bool(port)
        and parts.path == "/callback"
        and is_plain
    )


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that waits for the redirect."""

    redirect_uri: str
    state: str
    nonce: str
    verifier: str

    def url(self, provider: Provider, client_id: str) -> str:
        """Where to send the person's browser."""
        challenge = base64.urlsafe_b64encode(sha256(self.verifier.encode())).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": self.redirect_uri,
            "scope": SCOPE,
            "state": self.state,
            "nonce": self.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(provider.authorization_endpoint).query else "?"
        return f"{provider.authorization_endpoint}{joint}{urlencode(query)}"

    def check_redirect(self, provider: Provider, state: str, issuer: str) -> None:
        """Check that a redirect answers this login, at this provider.

        Raises:
            NotLoggedIn: it does not.
        """
        if not hmac.compare_digest(state.encode(), self.state.encode()):
            raise NotLoggedIn("the state is not that of this login")
        if issuer != provider.issuer and (issuer or provider.names_itself):
            raise NotLoggedIn("the redirect is from another issuer")

    def token_request(self, code: str) -> dict[str, str]:
        """What to ask the token endpoint."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
        }


@dataclass(frozen=True, slots=True)
class Rules:
    """What an ID token must say, and which claims name the person."""

    issuer: str
    client_id: str
    user_claim: str = "sub"
    groups_claim: str = "groups"


def person_of(token: Any, keys: Sequence[VerificationKey], rules: Rules, *, nonce: str | None, now: float) -> Person:
    """Who an ID token is for (OpenID Connect Core 1.0, section 3.1.3.7).

    Args:
        token: `id_token` of the provider's answer.
        nonce: of the login; None for the device grant, which has none.
        now: Unix seconds.

    Raises:
        NotLoggedIn: it proves nothing.
    """
    if not isinstance(token, str):
        raise NotLoggedIn("the provider sent no ID token")
    claims = signed_claims(token, keys)
    if isinstance(claims, Reason):
        raise NotLoggedIn(f"the ID token is not signed by the provider: {claims.value}")
    audiences = claims.get("aud")
    listed = audiences if isinstance(audiences, list) else [audiences]
    if claims.get("iss") != rules.issuer:
        raise NotLoggedIn("the ID token is of another issuer")
    if rules.client_id not in listed:
        raise NotLoggedIn("the ID token is for another audience")
    if (len(listed) > 1 or "azp" in claims) and claims.get("azp") != rules.client_id:
        raise NotLoggedIn("the ID token was given to another client")
    expires_at, issued_at = numeric_date(claims.get("exp")), numeric_date(claims.get("iat"))
    if expires_at is None or issued_at is None:
        raise NotLoggedIn("the ID token has no exp or no iat")
    if now >= expires_at + _LEEWAY_S or now < issued_at - _LEEWAY_S:
        raise NotLoggedIn("the ID token has expired, or is not valid yet")
    if nonce is not None and claims.get("nonce") != nonce:
        raise NotLoggedIn("the nonce of the ID token is not that of this login")
    return _person(claims, rules)


def _person(claims: Mapping[str, Any], rules: Rules) -> Person:
    subject, user = claims.get("sub"), claims.get(rules.user_claim)
    if not is_subject(subject):
        raise NotLoggedIn("the ID token has no usable sub")
    if not is_subject(user):
        raise NotLoggedIn(f"the ID token has no usable claim {rules.user_claim}")
    if rules.user_claim == "email" and claims.get("email_verified", True) not in (True, "true"):
        raise NotLoggedIn("the e-mail address in the ID token is not verified")
    groups = claims.get(rules.groups_claim, [])
    named = [groups] if isinstance(groups, str) else groups
    if not isinstance(named, list) or len(named) > _MAX_GROUPS or not all(isinstance(group, str) for group in named):
        raise NotLoggedIn(
            f"the claim {rules.groups_claim} of the ID token is not a list of at most {_MAX_GROUPS} names"
        )
    return Person(f"{rules.issuer}|{subject}", str(user), tuple(named))

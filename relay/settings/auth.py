"""Settings of authentication. Secrets are never in a settings file: it names the files that have them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from relay.ids import is_secure_url
from relay.settings.parts import Duration, Network, Part


def _secure(url: str) -> str:
    if not is_secure_url(url):
        raise ValueError("must be an https URL (http only on loopback)")
    return url


class Jwt(Part):
    """Tokens that agents bring (the guide's `auth.jwt`). One of the three keys is required."""

    secret_key_file: str = ""
    """HS256: 32 bytes or more; one newline at the end is not part of it. Whoever has it can make tokens."""
    public_key_file: str = ""
    """PEM: RSA (RS256, PS256), P-256 (ES256) or Ed25519 (EdDSA)."""
    jwks_url: str = ""
    """The issuer's JSON Web Key Set: https, or http on loopback. Fetched every 5 minutes; the last one is kept on disk."""
    issuer: str = ""
    """`iss` must be this; empty accepts any."""
    audience: str = ""
    """`aud` must contain this; empty accepts any."""
    expiration: Duration = Field(default=86400.0, gt=0)
    """The longest lifetime of a token, from `iat` to `exp`."""
    required_claims: tuple[str, ...] = ("sub", "exp", "iat")
    leeway: Duration = Field(default=60.0, le=600)
    """How far the clocks of issuer and node may be apart."""
    agent_id_claim: str = "sub"
    """The claim that names the one agent a token is for; empty if tokens are shared by many agents."""
    labels_claim: str = "labels"
    """The claim with the agent's trusted labels; empty for none."""
    refresh_enabled: bool = False
    refresh_before_expiry: Duration = 3600.0
    """Accepted with `refresh_enabled: false`, and then has no effect."""

    @field_validator("jwks_url")
    @classmethod
    def _over_tls(cls, value: str) -> str:
        return _secure(value) if value else value

    @field_validator("refresh_enabled")
    @classmethod
    def _no_refresh(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "agents renew their tokens by their own authentication extension; a token sent by the server would turn"
                " off TLS verification in opampsupervisor 0.149. Set it to false"
            )
        return value


class ApiKeyRules(Part):
    """API keys of agents (the guide's `auth.api_key`). The control plane makes them, nodes accept them."""

    storage: Literal["policy", "redis"] = "policy"
    """`policy`: the control plane keeps them, and sends their hashes to nodes as policy."""
    prefix: str = Field(default="opamp_", pattern=r"^[A-Za-z0-9_]{1,32}$")
    length: int = Field(default=32, ge=28, le=128)
    """Characters after the prefix; the last six are a checksum."""
    expiration: Duration = Field(default=90 * 86400.0, gt=0)
    """The lifetime of keys that are made without one."""
    rotation_warning: Duration = 30 * 86400.0
    """Keys that end within this time are counted in `opamp_control_plane_api_keys_expiring`."""

    @field_validator("storage")
    @classmethod
    def _no_redis(cls, value: str) -> str:
        if value == "redis":
            raise ValueError(
                "keys are not kept in Redis: the control plane keeps them, and each node has their hashes on its own"
                " disk, so that it authenticates agents while everything else is away. Set it to policy"
            )
        return value


class ControlPlaneAuth(Part):
    """What the control plane knows about agents' credentials; and whether nodes need none."""

    type: Literal["none"] | None = None
    """`none`: nodes and people need no credentials, also beyond loopback, unless `admin.auth` says otherwise."""
    api_key: ApiKeyRules = ApiKeyRules()


class Oidc(Part):
    """An OpenID provider, where people log in. What they may do is in RoleBinding documents."""

    issuer: str
    """Its URL, exactly as it writes it: https, or http on loopback."""
    client_id: str = Field(min_length=1)
    client_secret_file: str = ""
    """Empty for a public client."""
    user_claim: str = Field(default="sub", min_length=1)
    """The claim that names a person, as role bindings have it. Only `sub` never passes to somebody else."""
    groups_claim: str = Field(default="groups", min_length=1)
    device_flow: bool = False
    """Allow `opampctl login --device`. Whoever makes a person type a code gets the session: leave it off if you can."""

    @field_validator("issuer")
    @classmethod
    def _over_tls(cls, value: str) -> str:
        return _secure(value)


class AdminAuth(Part):
    """How people authenticate to the admin API."""

    type: Literal["none", "token", "oidc"]
    """`token`: `Authorization: Bearer`, made by `opampctl token create`; the first one is in `DATA_DIR/admin-token`.
    `oidc`: tokens, and `opampctl login` at an OpenID provider."""
    session: Duration = Field(default=43_200.0, ge=60, le=30 * 86_400)
    """How long a login lasts."""
    oidc: Oidc | None = None
    allow: tuple[Network, ...] = ()
    """Addresses that may call; empty for all."""


class Admin(Part):
    """The admin API."""

    auth: AdminAuth | None = None
    """None: no authentication, on loopback only."""


class NodeAuth(Part):
    """Who may connect to a node. `none` must be set explicitly to listen beyond loopback."""

    type: Literal["none", "jwt", "api_key", "mtls", "any"] = "none"
    """`mtls` needs `server.tls.client_ca_file`. `any` accepts all kinds; an Authorization header then decides alone."""
    secret_key_file: str = ""
    """The guide's short form of `jwt.secret_key_file`."""
    jwt: Jwt | None = None
    api_key: ApiKeyRules | None = None
    """What API keys look like, if not as by default."""
    allow: tuple[Network, ...] = ()
    """Addresses that may connect; empty for all."""
    deny: tuple[Network, ...] = ()
    """Addresses that may not connect; wins over `allow`."""
    revocations_file: str = ""
    """JSON list of `{"kind": …, "value": …}`: credentials that are refused from now on, also on open connections."""

    @property
    def token_rules(self) -> Jwt | None:
        """The rules for tokens, from either form; None if tokens are not accepted."""
        if self.type not in ("jwt", "any"):
            return None
        if self.secret_key_file:
            return (self.jwt or Jwt()).model_copy(update={"secret_key_file": self.secret_key_file})
        return self.jwt

    @property
    def key_rules(self) -> ApiKeyRules | None:
        """The rules for API keys; None if they are not accepted."""
        return self.api_key or ApiKeyRules() if self.type in ("api_key", "any") else None

    @property
    def accepts_certificates(self) -> bool:
        """Whether client certificates authenticate agents."""
        return self.type in ("mtls", "any")

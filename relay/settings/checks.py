"""Rules between fields of settings, and the files that settings name."""

from __future__ import annotations

from pathlib import Path

from relay.settings import parts
from relay.settings.auth import Jwt, NodeAuth
from relay.settings.parts import Part
from relay.settings.programs import ControlPlaneSettings, NodeSettings, Settings, StandaloneSettings


def cross_check(settings: Part) -> list[tuple[str, str]]:
    """Check rules between fields, and files that the settings name: (path, reason) of each violation."""
    assert isinstance(settings, Settings)
    node = settings.for_node() if isinstance(settings, StandaloneSettings) else settings
    problems = _open_endpoints(settings, node)
    if isinstance(node, NodeSettings):
        problems += _tls_problems(node.server.tls)
        problems += _auth_problems(node)
    if not isinstance(settings, NodeSettings):
        problems += _admin_problems(settings)
    if isinstance(settings, ControlPlaneSettings):
        problems += _link_problems(settings)
    if isinstance(settings, NodeSettings):
        problems += _identity_problems(settings.control_plane)
    path_of: dict[str, str] = {}
    for path, endpoint in settings.endpoints():
        if not endpoint.endswith(":0") and path_of.setdefault(endpoint, path) != path:
            problems.append((path, f"{endpoint} is already used by {path_of[endpoint]}"))
    return problems


def _open_endpoints(settings: Settings, node: Settings) -> list[tuple[str, str]]:
    """Endpoints that accept other machines although nothing says who may connect. Metrics are open to all."""
    if settings.auth is not None and settings.auth.type == "none":
        return []
    decided = set()
    if isinstance(node, NodeSettings) and node.auth is not None:
        decided = {path for path, _ in node.agent_endpoints()}
    if not isinstance(settings, NodeSettings) and settings.admin.auth is not None:
        decided.add("server.api.endpoint")
    if isinstance(settings, ControlPlaneSettings) and settings.link_has_tls:
        decided |= {"server.link.endpoint", "server.join.endpoint"}
    return [
        (path, f"{endpoint} accepts other machines without authentication; {_hint(path)}")
        for path, endpoint in settings.endpoints()
        if not parts.is_loopback(endpoint) and not path.startswith("telemetry.") and path not in decided
    ]


def _hint(path: str) -> str:
    if path == "server.api.endpoint":
        return "set `admin: {auth: {type: token}}` to ask for tokens, or `type: none` to allow it"
    if path == "server.link.endpoint":
        return "leave server.link.tls.enabled on, or set `auth: {type: none}` to allow it"
    return "set `auth` to the credentials that agents need, or to `{type: none}` to allow it"


def _admin_problems(settings: ControlPlaneSettings | StandaloneSettings) -> list[tuple[str, str]]:
    """Tokens of people that would be sent in the clear, and TLS files that are missing."""
    api, auth = settings.server.api, settings.admin.auth
    problems = []
    if api.tls.enabled:
        for key, name in (("cert_file", api.tls.cert_file), ("key_file", api.tls.key_file)):
            if not name:
                problems.append((f"server.api.tls.{key}", "is required when TLS is enabled"))
            elif not Path(name).is_file():
                problems.append((f"server.api.tls.{key}", f"{name}: no such file"))
    has_tokens = auth is not None and auth.type != "none"
    if auth is not None and (auth.type == "oidc") != (auth.oidc is not None):
        reason = "is required with type: oidc" if auth.type == "oidc" else "has no effect without type: oidc"
        problems.append(("admin.auth.oidc", reason))
    if auth is not None and auth.oidc is not None and auth.oidc.client_secret_file:
        problems += _unreadable("admin.auth.oidc.client_secret_file", auth.oidc.client_secret_file)
    if has_tokens and not parts.is_loopback(api.endpoint) and not api.tls.enabled and not api.tls.terminated:
        hint = "set server.api.tls.enabled, or server.api.tls.terminated if a proxy ends TLS"
        problems.append(("server.api.tls.enabled", f"tokens would be sent in the clear; {hint}"))
    return problems


def _unreadable(path: str, name: str) -> list[tuple[str, str]]:
    try:
        content = Path(name).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        return [(path, f"{name}: {error.strerror if isinstance(error, OSError) else 'not text'}")]
    return [] if content else [(path, f"{name}: is empty")]


def _link_problems(settings: ControlPlaneSettings) -> list[tuple[str, str]]:
    """TLS on the link: names that nodes could not verify, and files that are missing."""
    tls, endpoint = settings.server.link.tls, settings.server.link.endpoint
    problems = []
    files = {"cert_file": tls.cert_file, "key_file": tls.key_file, "client_ca_file": tls.client_ca_file}
    named = {key: name for key, name in files.items() if name}
    if named and not settings.link_has_tls:
        problems.append((f"server.link.tls.{next(iter(named))}", "has no effect without server.link.tls.enabled"))
    problems += [
        (f"server.link.tls.{key}", f"{name}: no such file") for key, name in named.items() if not Path(name).is_file()
    ]
    if bool(tls.cert_file) != bool(tls.key_file):
        problems.append(("server.link.tls.cert_file", "cert_file and key_file go together"))
    if settings.link_has_tls and not settings.server.names and not tls.cert_file and not parts.is_loopback(endpoint):
        problems.append(("server.names", "is required beyond loopback: names by which nodes reach this control plane"))
    return problems


def _identity_problems(address: parts.ControlPlaneAddress) -> list[tuple[str, str]]:
    files = {name: getattr(address, name) for name in ("ca_file", "cert_file", "key_file")}
    given = [name for name, file in files.items() if file]
    if address.root_file and not address.cert_file:
        return [
            ("control_plane.root_file", "goes together with ca_file, cert_file, key_file: a node that joins has it")
        ]
    missing = [name for name in files if name not in given]
    if given and missing:
        return [(f"control_plane.{missing[0]}", f"goes together with {', '.join(given)}")]
    return [
        (f"control_plane.{name}", f"{file}: no such file")
        for name, file in files.items()
        if file and not Path(file).is_file()
    ]


def _tls_problems(tls: parts.Tls) -> list[tuple[str, str]]:
    required = ("cert_file", "key_file") if tls.enabled else ()
    problems = [(f"server.tls.{key}", "is required when TLS is enabled") for key in required if not getattr(tls, key)]
    files = ("cert_file", "key_file", "client_ca_file", "crl_file") if tls.enabled else ()
    named = [(key, getattr(tls, key)) for key in files if getattr(tls, key)]
    problems += [(f"server.tls.{key}", f"{name}: no such file") for key, name in named if not Path(name).is_file()]
    if tls.asks_for_certificates != "none" and not tls.client_ca_file:
        problems.append(("server.tls.client_auth", f"{tls.client_auth} needs client_ca_file"))
    if tls.crl_file and not tls.client_ca_file:
        problems.append(("server.tls.crl_file", "needs client_ca_file"))
    return problems


def _auth_problems(settings: NodeSettings) -> list[tuple[str, str]]:
    """Credentials that could not be verified, or would be sent in the clear."""
    auth, tls = settings.auth, settings.server.tls
    if auth is None:
        return []
    if auth.type == "none":
        names = ("allow", "deny", "revocations_file", "jwt", "secret_key_file")
        idle = [name for name in names if getattr(auth, name)]
        return [(f"auth.{name}", "has no effect with type none") for name in idle]
    problems = []
    if auth.type == "mtls" and (auth.jwt is not None or auth.secret_key_file):
        problems.append(("auth.type", "tokens are not accepted with type mtls; use any"))
    has_certificates = auth.accepts_certificates and tls.enabled and tls.asks_for_certificates != "none"
    rules = auth.token_rules
    if auth.type == "mtls" and not has_certificates:
        problems.append(("auth.type", "mtls needs server.tls.enabled and server.tls.client_ca_file"))
    if auth.type == "api_key" and (auth.jwt is not None or auth.secret_key_file):
        problems.append(("auth.type", "tokens are not accepted with type api_key; use any"))
    if auth.type == "jwt" and rules is None:
        problems.append(("auth.jwt", "is required with type jwt"))
    if rules is not None:
        problems += _key_problems(auth, rules)
    if rules is not None or auth.key_rules is not None:
        is_open = not all(parts.is_loopback(endpoint) for _, endpoint in settings.agent_endpoints())
        if is_open and not tls.enabled and not tls.terminated:
            hint = "set server.tls.enabled, or server.tls.terminated if a proxy ends TLS"
            problems.append(("auth.type", f"credentials would be in the clear; {hint}"))
    return problems


def _key_problems(auth: NodeAuth, rules: Jwt) -> list[tuple[str, str]]:
    short = "auth.secret_key_file" if auth.secret_key_file else "auth.jwt.secret_key_file"
    if auth.secret_key_file and auth.jwt is not None and auth.jwt.secret_key_file:
        return [(short, "stands for auth.jwt.secret_key_file; set only one of them")]
    sources = [
        (short, rules.secret_key_file),
        ("auth.jwt.public_key_file", rules.public_key_file),
        ("auth.jwt.jwks_url", rules.jwks_url),
    ]
    named = [(path, name) for path, name in sources if name]
    if not named:
        return [("auth.jwt", "needs secret_key_file, public_key_file or jwks_url")]
    if len(named) > 1:
        return [(short, f"{' and '.join(path for path, _ in named)} exclude each other; set only one of them")]
    path, name = named[0]
    is_file = path != "auth.jwt.jwks_url"
    return [(path, f"{name}: no such file")] if is_file and not Path(name).is_file() else []

"""What `opamp-relay check` warns of: settings that work, but that somebody should know about."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from relay.control.keys.trust import ROOT_FILE
from relay.settings import parts
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings

_SOON = timedelta(days=30)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def warnings_of(settings: NodeSettings | ControlPlaneSettings | StandaloneSettings) -> list[tuple[str, str]]:
    """(path, what to know) of everything that is worth a warning."""
    if isinstance(settings, StandaloneSettings):
        node: NodeSettings | None = settings.for_node()
        control_plane: ControlPlaneSettings | None = settings.for_control_plane()
    else:
        node = settings if isinstance(settings, NodeSettings) else None
        control_plane = settings if isinstance(settings, ControlPlaneSettings) else None
    found = list(_of_node(node)) if node is not None else []
    return found + (list(_of_control_plane(control_plane)) if control_plane is not None else [])


def _of_node(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    auth, tls = settings.auth, settings.server.tls
    open_ports = [path for path, endpoint in settings.agent_endpoints() if not parts.is_loopback(endpoint)]
    is_open = auth is None or auth.type == "none"
    if open_ports and is_open:
        yield "auth.type", f"none: whoever reaches {', '.join(open_ports)} can pose as any agent"
    if not is_open and settings.identity.labels_from_attributes == "all":
        yield "identity.labels_from_attributes", "all: agents choose their own labels, whatever their credential says"
    above = settings.control_plane
    has_joined = (settings.identity_dir / "key_sets.json").exists() or above.join_token_file or above.cert_file
    if not has_joined and not parts.is_loopback(above.endpoint):
        yield (
            "control_plane.endpoint",
            "the link has no TLS: this node believes whoever answers; let it join with a token",
        )
    if tls.enabled:
        yield from _of_certificate("server.tls.cert_file", tls.cert_file)
        yield from _of_private_file("server.tls.key_file", tls.key_file)
        if tls.min_version == "1.2":
            yield "server.tls.min_version", "1.2: agents may negotiate TLS 1.2"
    rules = auth.token_rules if auth is not None else None
    if rules is None:
        return
    if rules.secret_key_file:
        yield "auth.jwt.secret_key_file", "HS256: whoever can read this file can make tokens for any agent"
        yield from _of_private_file("auth.jwt.secret_key_file", rules.secret_key_file)
    for name in ("issuer", "audience"):
        if not getattr(rules, name):
            yield f"auth.jwt.{name}", "is not checked: tokens that the same key signed for others are accepted too"


def _of_control_plane(settings: ControlPlaneSettings) -> Iterator[tuple[str, str]]:
    server, admin = settings.server, settings.admin.auth
    if not parts.is_loopback(server.link.endpoint) and not settings.link_has_tls:
        yield (
            "server.link.tls.enabled",
            "false: whoever reaches the link can read and change everything of every region",
        )
    if not parts.is_loopback(server.api.endpoint) and (admin is None or admin.type == "none"):
        yield "admin.auth.type", "none: whoever reaches the admin API can do everything"
    if server.api.tls.enabled:
        yield from _of_certificate("server.api.tls.cert_file", server.api.tls.cert_file)
        yield from _of_private_file("server.api.tls.key_file", server.api.tls.key_file)
    if admin is not None and admin.oidc is not None:
        if admin.oidc.client_secret_file:
            yield from _of_private_file("admin.auth.oidc.client_secret_file", admin.oidc.client_secret_file)
        if admin.oidc.device_flow:
            yield "admin.auth.oidc.device_flow", "on: whoever makes a person enter a code gets a session of that person"
    root = Path(settings.keys_dir) / ROOT_FILE
    if settings.link_has_tls and root.exists():
        yield "keys.dir", f"{root} is still there: move it away, the control plane never reads it"


def _of_certificate(path: str, name: str) -> Iterator[tuple[str, str]]:
    try:
        certificate = x509.load_pem_x509_certificate(Path(name).read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        yield path, f"{name}: has no subject alternative names; Go clients refuse it"
    except (OSError, ValueError):
        return  # who loads it says what is wrong
    else:
        if not list(names):
            yield path, f"{name}: has no subject alternative names; Go clients refuse it"
    ends = certificate.not_valid_after_utc
    if ends - datetime.now(UTC) < _SOON:
        yield path, f"{name}: ends on {ends:%Y-%m-%d}"


def _of_private_file(path: str, name: str) -> Iterator[tuple[str, str]]:
    try:
        mode = Path(name).stat().st_mode
    except OSError:
        return
    if mode & _OTHERS:
        yield path, f"{name}: others than its owner can read it (chmod 600)"

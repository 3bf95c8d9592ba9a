"""What says who may connect: files (keys of tokens, certificates, revocation lists) and the policy (API keys, revocations).

Files are read at start, and when they change. What was read before stays in force if they then cannot be read.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from relay.auth.addresses import AddressRules
from relay.auth.certificates import CertificateVerifier, revoked_by
from relay.auth.chain import Chain, KeyVerifier
from relay.auth.principal import Method, Principal
from relay.auth.revocations import Kind, Revocations, read_revocations
from relay.auth.secrets import SecretForm
from relay.auth.tokens import TokenRules, TokenVerifier, VerificationKey, public_key, secret_key
from relay.errors import Problem, SettingsError
from relay.observe import log
from relay.policy.access import Access
from relay.settings.auth import Jwt, NodeAuth
from relay.settings.parts import Tls
from relay.settings.programs import NodeSettings

_log = log.get("opamp-relay.auth")
_MIN_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_KINDS = frozenset(kind.value for kind in Kind)
_MAX_FILE_BYTES = 16 << 20
_Stamp = tuple[int, int, int]
"""(inode, size, time of change in ns) of a file."""


@dataclass(frozen=True, slots=True)
class FileRules:
    """What the files say about who may connect."""

    tokens: TokenVerifier | None
    certificates: CertificateVerifier | None
    required_certificates: CertificateVerifier | None
    revocations: Revocations
    addresses: AddressRules


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files say."""

    rules: FileRules | None
    """None where agents need no credentials."""
    tls: ssl.SSLContext | None
    grpc: grpc.ServerCertificateConfiguration | None
    ends_at: float | None = None
    """When the certificate of the agents' ports ends, Unix seconds; None without TLS."""


class Credentials:
    """What a node knows about credentials, from files and from policy.

    Raises:
        SettingsError: one cannot be read, or is not what it should be.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._auth = settings.auth or NodeAuth()
        self._tls = settings.server.tls
        self._access = Access()
        self._key_set: tuple[VerificationKey, ...] = ()
        self._stamps = self._look()
        self.current = self._load()
        self.problem = ""
        """Why the files as they are now could not be loaded; empty while all is well."""
        self.failures = 0
        """How often files that changed could not be loaded."""

    @property
    def chain(self) -> Chain | None:
        """Decides who may connect, by what is known now; None where agents need no credentials."""
        rules, keys = self.current.rules, self._auth.key_rules
        if rules is None:
            return None
        revoked = Revocations((Kind(kind), value) for kind, value in self._access.revoked if kind in _KINDS)
        token_rules = self._auth.token_rules
        has_key_set = token_rules is not None and bool(token_rules.jwks_url)
        return Chain(
            tokens=_verifier(self._key_set, token_rules) if has_key_set and token_rules else rules.tokens,
            api_keys=KeyVerifier(SecretForm(keys.prefix, keys.length), self._find_key) if keys is not None else None,
            certificates=rules.certificates,
            required_certificates=rules.required_certificates,
            revocations=rules.revocations | revoked,
            addresses=rules.addresses,
        )

    def _find_key(self, key_id: str) -> tuple[bytes, Principal] | None:
        """(SHA-256, whose it is) of the API key with an id; None for an unknown one."""
        key = self._access.key(bytes.fromhex(key_id.rpartition("-")[2]))
        if key is None:
            return None
        agent_id, ends_at = key.subject if key.is_single else "", key.refused_from_ms / 1000
        return key.digest, Principal(key.subject, Method.API_KEY, key_id, agent_id, key.labels, ends_at)

    def admit(self, access: Access) -> None:
        """Go by the keys and revocations of another policy from now on. `chain` is then another one."""
        self._access = access

    def use_key_set(self, keys: tuple[VerificationKey, ...]) -> None:
        """Verify tokens with the keys of another key set from now on. `chain` is then another one."""
        self._key_set = keys

    def refresh(self) -> bool:
        """Load the files again if one of them has changed. Returns whether something new is in force."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        try:
            self.current = self._load()
        except Exception as error:  # whatever a file contains: sessions must go on being watched
            # The stamps stay: it is tried again, for the reason may pass.
            problem = str(error.problems[0]) if isinstance(error, SettingsError) else repr(error)
            if problem != self.problem:
                self.problem = problem
                self.failures += 1
                _log.error("tls_reload_failed", problem=problem, consequence="what was loaded before stays in force")
            return False
        self._stamps, self.problem = stamps, ""
        _log.info("tls_reloaded")
        return True

    def grpc_server(self) -> grpc.ServerCredentials | None:
        """The credentials of the gRPC server, which asks for newer ones with each connection; None without TLS."""
        first = self.current.grpc
        if first is None:
            return None
        required = self._tls.asks_for_certificates == "required"
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            first, lambda: self.current.grpc or first, required
        )
        return credentials

    def _look(self) -> dict[str, _Stamp | None]:
        rules = self._auth.token_rules
        tls = self._tls
        names = {tls.cert_file, tls.key_file, tls.client_ca_file, tls.crl_file, self._auth.revocations_file}
        if rules is not None:
            names |= {rules.secret_key_file, rules.public_key_file}
        return {name: _stamp(name) for name in sorted(names - {""})}

    def _load(self) -> Loaded:
        tls = self._context()  # first: it tells best what is wrong with a CA
        return Loaded(self._rules(), tls, self._grpc(), self._ends_at())

    def _ends_at(self) -> float | None:
        if not self._tls.enabled:
            return None
        leaf = x509.load_pem_x509_certificate(_read("server.tls.cert_file", self._tls.cert_file))
        return leaf.not_valid_after_utc.timestamp()

    def _rules(self) -> FileRules | None:
        auth, tls = self._auth, self._tls
        if auth.type == "none":
            return None
        rules = auth.token_rules
        certificates = _certificates(tls) if tls.enabled and tls.asks_for_certificates != "none" else None
        return FileRules(
            tokens=_tokens(rules) if rules is not None and not rules.jwks_url else None,
            certificates=certificates if auth.accepts_certificates else None,
            required_certificates=certificates if tls.asks_for_certificates == "required" else None,
            revocations=_revocations(auth.revocations_file) if auth.revocations_file else Revocations(),
            addresses=AddressRules(map(str, auth.allow), map(str, auth.deny)),
        )

    def _context(self) -> ssl.SSLContext | None:
        tls = self._tls
        if not tls.enabled:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _MIN_VERSIONS[tls.min_version]
        # A resumed session would bring back a certificate that has expired, or was revoked, since.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: "")  # never asks on a terminal
        except (OSError, ssl.SSLError) as error:
            raise _problem(
                "server.tls.cert_file", f"{tls.cert_file}, {tls.key_file}: cannot be loaded: {error}"
            ) from None
        if tls.asks_for_certificates != "none":
            # Agents download packages without their certificate: who must have one is decided after the handshake.
            is_decided_later = self._auth.type != "none" or tls.asks_for_certificates == "optional"
            context.verify_mode = ssl.CERT_OPTIONAL if is_decided_later else ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(tls.client_ca_file)
            except (OSError, ssl.SSLError) as error:
                raise _problem(
                    "server.tls.client_ca_file", f"{tls.client_ca_file}: cannot be loaded: {error}"
                ) from None
        return context

    def _grpc(self) -> grpc.ServerCertificateConfiguration | None:
        tls = self._tls
        if not tls.enabled:
            return None
        pair = _read("server.tls.key_file", tls.key_file), _read("server.tls.cert_file", tls.cert_file)
        authorities = _read("server.tls.client_ca_file", tls.client_ca_file) if tls.client_ca_file else None
        return grpc.ssl_server_certificate_configuration([pair], authorities)


def _tokens(rules: Jwt) -> TokenVerifier:
    return _verifier([_key(rules)], rules)


def _verifier(keys: Iterable[VerificationKey], rules: Jwt) -> TokenVerifier:
    return TokenVerifier(
        keys,
        TokenRules(
            issuer=rules.issuer,
            audience=rules.audience,
            lifetime_s=rules.expiration,
            leeway_s=rules.leeway,
            required=rules.required_claims,
            agent_id_claim=rules.agent_id_claim,
            labels_claim=rules.labels_claim,
        ),
    )


def _key(rules: Jwt) -> VerificationKey:
    if rules.secret_key_file:
        path, name = "auth.jwt.secret_key_file", rules.secret_key_file
    else:
        path, name = "auth.jwt.public_key_file", rules.public_key_file
    content = _read(path, name)
    try:
        return secret_key(content) if rules.secret_key_file else public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _problem(path, f"{name}: {error}") from None


def _revocations(name: str) -> Revocations:
    if not Path(name).exists():
        return Revocations()
    content = _read("auth.revocations_file", name)
    try:
        return read_revocations(content)
    except ValueError as error:
        raise _problem("auth.revocations_file", f"{name}: {error}") from None


def _certificates(tls: Tls) -> CertificateVerifier:
    if not tls.crl_file:
        return CertificateVerifier()
    crls = _read("server.tls.crl_file", tls.crl_file)
    try:
        return CertificateVerifier(revoked_by(crls, _read("server.tls.client_ca_file", tls.client_ca_file)))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _problem("server.tls.crl_file", f"{tls.crl_file}: {error}") from None


def _read(path: str, name: str) -> bytes:
    file = Path(name)
    if file.exists() and not file.is_file():
        raise _problem(path, f"{name}: not a regular file")
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise _problem(path, f"{name}: larger than {_MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise _problem(path, f"{name}: {error.strerror}") from None


def _stamp(name: str) -> _Stamp | None:
    try:
        status = Path(name).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _problem(path: str, reason: str) -> SettingsError:
    return SettingsError([Problem("settings", 0, path, reason)])

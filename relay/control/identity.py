"""TLS on the link: which nodes are who they say, by certificates of our own CA or of somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc

from relay.aio.clock import Clock
from relay.auth.identities import node_certificate
from relay.auth.principal import Reason
from relay.control.fleet.fleet import Fleet
from relay.control.join.registry import JoinRegistry, Lifetimes
from relay.control.keys.trust import ROOT_FILE, Trust
from relay.control.ledger.ledger import Ledger
from relay.errors import RelayError, StoreError
from relay.link.server import LinkServer
from relay.observe import log
from relay.settings.parts import split_endpoint
from relay.settings.programs import ControlPlaneSettings
from relay.store.private import write_private

_log = log.get("opamp-relay.identity")
_SERVER_LIFETIME_S = 90 * 86_400.0
_RENEW_AT_S = 30 * 86_400.0
"""So long before its end, the certificate of this control plane is replaced."""
_LOOK_S = 0.5
_RETRY_S = 10.0
_SKEW_S = 60.0
_CLOSE_AFTER_MS = 30 * 86_400_000
"""So long after a rotation, former CAs are no longer trusted, even if a node has not been heard since."""


class Identities:
    """What a control plane knows about nodes' certificates, where the link has TLS. Call `load` first."""

    def __init__(
        self, settings: ControlPlaneSettings, ledger: Ledger, trust: Trust, fleet: Fleet, *, clock: Clock
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._fleet = fleet
        self.trust = trust
        self._clock = clock
        self._folder = Path(settings.keys_dir)
        self._ports = {"join": split_endpoint(settings.server.join.endpoint)[1], "link": 0}
        keys = settings.keys
        lifetimes = Lifetimes(keys.node_ttl, keys.renew_expired_for)
        self.registry = JoinRegistry(ledger, self.trust, lifetimes, self._addresses, clock=clock, is_own=self.is_own)
        self.cert_file, self.key_file = self._folder / "server.crt", self._folder / "server.key"
        self._issued_at = self._ends_at = self._retry_at = 0.0
        self._authority = ""
        self.problem = ""
        """Why the certificate of this control plane could not be replaced; empty while all is well."""

    @property
    def is_own(self) -> bool:
        """Whether nodes' certificates are ours; else those of the CA in the settings."""
        return not self._settings.server.link.tls.client_ca_file

    def _addresses(self) -> tuple[str, str]:
        name = self._settings.names[0]
        host = f"[{name}]" if ":" in name else name
        return f"{host}:{self._ports['join']}", f"{host}:{self._ports['link']}"

    def listening(self, name: str, port: int) -> None:
        """Tell which port `join` or `link` has."""
        self._ports[name] = port

    async def load(self) -> None:
        """Issue a certificate for this control plane.

        Raises:
            StoreError: a key or certificate cannot be read or written.
        """
        try:
            self._issue()
            if (self._folder / ROOT_FILE).exists():
                _log.warning("root_key_present", file=str(self._folder / ROOT_FILE), hint="move it to a safe place")
        except StoreError as error:
            if not (self.cert_file.exists() and self.key_file.exists()):
                raise
            self._failed(str(error))  # those of the last start may still do

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            _log.error("certificate_not_issued", error=problem)
        self.problem = problem

    @property
    def _is_due(self) -> bool:
        """Whether our certificate must be replaced: it ends soon, it begins only later (a clock was wrong), or by its CA."""
        now = self._clock.unix_ms() / 1000
        is_other_ca = self.trust.server_authority(all_trust_newest=self._all_trust_newest) != self._authority
        return is_other_ca or self._ends_at - now < _RENEW_AT_S or now < self._issued_at - _SKEW_S

    @property
    def _all_trust_newest(self) -> bool:
        """Whether every node that joined trusts the newest CA, or had long enough to hear of it."""
        nodes, version = self._fleet.census.nodes, self.trust.current.version
        return self._is_late or all(
            node.revoked or (node.id in nodes and nodes[node.id].key_set >= version)
            for node in self._ledger.state.joined_nodes.values()
        )

    @property
    def _is_late(self) -> bool:
        return self._clock.unix_ms() > self.trust.rotated_ms + _CLOSE_AFTER_MS

    async def _close(self) -> None:
        """End the trust in former CAs once nobody needs them."""
        closing = self.trust.closing
        if not closing:
            return
        is_ready = self._all_trust_newest and not self.registry.still_with_former_ca()
        if self._is_late or (is_ready and not self._is_due):
            await self.trust.close(closing)

    def _issue(self) -> None:
        now = self._clock.unix_ms() / 1000
        all_trust_newest = self._all_trust_newest
        authority = self.trust.server_authority(all_trust_newest=all_trust_newest)
        issuer = self.trust.server_issuer(all_trust_newest=all_trust_newest)
        pair = issuer.server(self._settings.names, now, _SERVER_LIFETIME_S)
        try:
            write_private(self.key_file, pair.key)
            write_private(self.cert_file, pair.certificate)
        except OSError as error:
            raise StoreError(f"{self.cert_file}: {error.strerror}") from None
        self._issued_at, self._ends_at, self.problem = now, now + _SERVER_LIFETIME_S, ""
        self._authority = authority

    def grpc_server(self) -> grpc.ServerCredentials:
        """The credentials of the link's server, which asks for newer ones with each connection."""
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._configuration, True)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        tls = self._settings.server.link.tls
        key_file, cert_file = Path(tls.key_file or self.key_file), Path(tls.cert_file or self.cert_file)
        authorities = Path(tls.client_ca_file).read_bytes() if tls.client_ca_file else self.trust.authorities
        return grpc.ssl_server_certificate_configuration([(key_file.read_bytes(), cert_file.read_bytes())], authorities)

    def identify(self, pem: bytes) -> tuple[str, str] | str:
        """(region, name) of the node that a certificate is for, or why it is refused. See `LinkServer`."""
        found = node_certificate(pem, self._clock.unix_ms() / 1000) if pem else Reason.NO_CREDENTIAL
        if isinstance(found, Reason):
            return f"the certificate of this node is not accepted: {found.value}"
        return self.registry.refusal(found) or (found.region, found.name)

    async def run(self, link: LinkServer, replaced: Callable[[], None]) -> None:
        """End the streams of nodes that are no longer accepted, and renew our certificate. Runs until cancelled.

        Args:
            replaced: called when our certificate is another one.
        """
        changed = asyncio.Event()
        self._ledger.watch(changed)
        try:
            while True:
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
                try:
                    await link.end_refused()
                    await self._close()
                    if self._is_due and self._clock.monotonic() >= self._retry_at:
                        self._retry_at = self._clock.monotonic() + _RETRY_S
                        self._issue()
                        replaced()
                except (RelayError, OSError) as error:
                    self._failed(str(error))
                except Exception as error:  # whatever it is: streams must go on being watched
                    _log.exception("identities_failed")
                    self._failed(repr(error))
        finally:
            self._ledger.unwatch(changed)

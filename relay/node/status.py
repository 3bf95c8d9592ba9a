"""A node's status: for its control plane, for probes and people, and as gauges. All three show the same facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from relay.aio.clock import Clock
from relay.fleet.cohort import Cohorts
from relay.link.health import LinkHealth
from relay.link.protocol.peer import version_message
from relay.link.protocol.reports import ReportSender
from relay.node.credentials import Credentials
from relay.node.freshness import MAX_SKEW_S, Freshness
from relay.node.hub import Hub
from relay.node.joining import Renewal
from relay.node.jwks import KeySetSource
from relay.node.packages.cache import PackageCache
from relay.node.policy import PolicyHolder
from relay.node.registry import Registry
from relay.pb.relay.v1 import link_pb2
from relay.store.local import LocalStore
from relay.transport.peers import TrustedProxies
from relay.transport.places import Places

_NEARLY_FULL = 0.9
_UNHEARD_S = 30.0
"""Reports go up every 10 s."""
_MAX_LISTED_VALUES = 3
_MAX_LISTED = 5
"""How many names a message lists at most."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A node's condition, for probes and people."""

    ready: bool
    reason: str
    """Why the node is not ready; empty if it is."""
    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a node that its status comes from."""

    store: LocalStore
    policy: PolicyHolder
    freshness: Freshness
    packages: PackageCache
    registry: Registry
    hub: Hub
    sender: ReportSender
    cohorts: Cohorts
    link: LinkHealth
    places: Places
    proxies: TrustedProxies
    credentials: Credentials
    renewal: Renewal | None = None
    """None for a node that did not join."""
    key_set: KeySetSource | None = None
    """None unless tokens are verified by an issuer's key set."""


class Status:
    """Collects the status from the parts. It holds only the node's lifecycle itself.

    Args:
        max_agents: how many agents the node may know.
        public_url: whether a URL for packages is set, so that their addresses do not depend on how agents connect.
    """

    def __init__(
        self, parts: Parts, *, region: str, node: str, max_agents: int, public_url: bool, clock: Clock
    ) -> None:
        self._parts = parts
        self._region = region
        self._node = node
        self._max_agents = max_agents
        self._public_url = public_url
        self._clock = clock
        self.listening = False
        """The node's ports are open."""
        self.draining = False
        self.leaving = False
        """The node is sending its last report."""

    def message(self) -> link_pb2.NodeStatus:
        """The status in every report to the control plane."""
        parts = self._parts
        age = parts.freshness.age_s()
        status = link_pb2.NodeStatus(
            unix_ms=self._clock.unix_ms(),
            policy_age_s=-1.0 if age is None else age,
            rejected=list(parts.policy.rejected.values()),
            leaving=self.leaving,
        )
        status.blobs.extend(bytes.fromhex(sha256) for sha256 in parts.packages.available_files)
        for sha256, reason in parts.packages.problems.items():
            status.blob_problems.add(sha256=bytes.fromhex(sha256), reason=reason)
        for rollout, reason in parts.policy.halted().items():
            status.halted.add(rollout=rollout, reason=reason)
        if (chain := parts.policy.receiver.chain) is not None:
            status.key_set = chain.current.version
        if parts.policy.receiver.version is not None:
            status.manifest.CopyFrom(version_message(parts.policy.receiver.version))
        return status

    def condition(self) -> Condition:
        """The node's readiness and status."""
        parts, reason = self._parts, self._not_ready
        version, age = parts.policy.receiver.version, parts.freshness.age_s()
        status = {
            "region": self._region,
            "node": self._node,
            "link": parts.link.word,
            "manifest": list(version) if version else None,
            "policy_age_s": None if age is None else round(age, 3),
            "agents": len(parts.registry),
            "connected": parts.hub.connected,
            "connections": parts.places.used,
            "cohorts": len(parts.cohorts),
            "halted": parts.policy.halted(),
            "rejected": [{"name": r.name, "reason": r.reason} for r in parts.policy.rejected.values()],
            "degraded": self.degraded,
        }
        return Condition(not reason, reason, status)

    @property
    def _not_ready(self) -> str:
        if self.draining:
            return "draining"
        if not self.listening:
            return "starting"
        return "" if self._parts.policy.accepted else "no policy has been received"

    @property
    def degraded(self) -> list[str]:
        """The node's problems, one message each."""
        return [*self._of_store(), *self._of_credentials(), *self._of_policy(), *self._of_agents(), *self._of_link()]

    def _of_store(self) -> Iterator[str]:
        store = self._parts.store
        if store.problem is not None:
            yield f"store: {store.problem}"
        if store.damaged:
            listed = [f"{bucket} {key.hex()[:16]}" for bucket, key in list(store.damaged)[:_MAX_LISTED_VALUES]]
            yield f"store: {len(store.damaged)} damaged values were dropped: {', '.join(listed)}"

    def _of_credentials(self) -> Iterator[str]:
        renewal, key_set = self._parts.renewal, self._parts.key_set
        if key_set is not None and key_set.problem:
            yield f"auth.jwt.jwks_url: {key_set.problem}; the keys known before stay in force"
        if renewal is not None and renewal.problem:
            yield f"certificate: could not be renewed: {renewal.problem}"
        if self._parts.credentials.problem:
            yield f"credentials: {self._parts.credentials.problem}; those loaded before stay in force"

    def _of_policy(self) -> Iterator[str]:
        policy, receiver = self._parts.policy, self._parts.policy.receiver
        if policy.is_incomplete and not policy.missing:
            yield "policy: damaged parts are missing until they are fetched again"
        if policy.missing:
            yield f"policy: {', '.join(sorted(policy.missing)[:_MAX_LISTED])} was damaged and will be fetched again"
        if receiver.ahead_of is not None:
            yield (
                f"policy: {list(receiver.version or ())} is newer than the control plane's"
                f" {list(receiver.ahead_of)}, or belongs to another database; the node still serves it"
            )
        if receiver.refusal:
            yield f"policy: refused: {receiver.refusal}"
        if abs(self._parts.freshness.lag_s) > MAX_SKEW_S:
            word = "ahead of" if self._parts.freshness.lag_s > 0 else "behind"
            yield f"clock: it is {abs(self._parts.freshness.lag_s):.0f} s {word} the control plane's"
        if policy.rejected:
            yield f"policy: {len(policy.rejected)} resources rejected"
        for name, why in policy.halted().items():
            yield f"rollout {name} was halted by this node: {why}"
        for sha256, why in self._parts.packages.problems.items():
            yield f"package {sha256[:12]}: {why}"
        if not self._parts.freshness.may_offer():
            yield "policy: it is older than control_plane.max_staleness; agents get no new offers"

    def _of_agents(self) -> Iterator[str]:
        proxies, places, known = self._parts.proxies, self._parts.places, len(self._parts.registry)
        if proxies.first_untrusted and not self._public_url:
            yield (
                f"proxies: {proxies.first_untrusted} sends forwarding headers but is not in server.trusted_proxies;"
                " the addresses of packages and agents may be the proxy's"
            )
        if known >= _NEARLY_FULL * self._max_agents:
            yield f"agents: {known} of {self._max_agents} (server.limits.max_agents) are in use"
        if places.limit < places.configured:
            yield f"connections: there are file descriptors for only {places.limit} of {places.configured}"

    def _of_link(self) -> Iterator[str]:
        link = self._parts.link
        if link.unacknowledged_s() > _UNHEARD_S:
            yield f"link: no report has been acknowledged for {link.unacknowledged_s():.0f} s"
        if link.refusal:
            yield f"link: reports are refused: {link.refusal}"

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """Name → (help, value)."""
        parts = self._parts
        return {
            "opamp_server_connected_agents": ("Agents connected", lambda: parts.registry.rollup.connected),
            "opamp_relay_agents": ("Agents known", lambda: len(parts.registry)),
            "opamp_relay_connections": ("Open connections of all kinds", lambda: parts.places.used),
            "opamp_relay_cohorts": ("Distinct answers", lambda: len(parts.cohorts)),
            "opamp_relay_link_up": ("1 while connected to the control plane", lambda: float(parts.link.connected)),
            "opamp_relay_link_silent_seconds": ("Seconds since the control plane was last heard", parts.link.silent_s),
            "opamp_relay_policy_age_seconds": (
                "Seconds since the policy was confirmed to be the newest, or since the start",
                parts.freshness.age_or_uptime_s,
            ),
            "opamp_relay_policy_change_seconds": (
                "How long it took to offer the last policy change to all connected agents, in seconds",
                lambda: parts.hub.last_change_s,
            ),
            "opamp_relay_reports_waiting": ("Changes not yet sent upward", lambda: len(parts.sender)),
            "opamp_relay_reports_in_flight": ("Reports not acknowledged", lambda: parts.sender.in_flight),
            "opamp_relay_blob_bytes": ("Package files on disk", lambda: parts.packages.used_bytes),
            "opamp_relay_blob_fetching": (
                "Package files being fetched from the control plane",
                lambda: parts.packages.fetching,
            ),
            "opamp_relay_keyset_version": (
                "Version of the newest key set that this node trusts; 0 for none",
                lambda: chain.current.version if (chain := parts.policy.receiver.chain) is not None else 0,
            ),
            "opamp_relay_clock_skew_seconds": (
                "Seconds that this node's clock is ahead of the control plane's, as of its last Freshness",
                lambda: parts.freshness.lag_s,
            ),
            "opamp_relay_store_degraded": ("1 while writes fail", lambda: float(parts.store.problem is not None)),
        }

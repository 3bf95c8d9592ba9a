"""Every metric in one file.

Hot counters are plain integers: owners add to them, and a collector exports them at each scrape (a prometheus Counter
costs 0.6 µs per increment). Names follow the deployment guide where it has one; all others begin with `opamp_relay_` or
`opamp_control_plane_`. Label sets are finite: no agent ids, no addresses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from relay.observe import log

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class NodeMetrics:
    """A node's counters. Owners add to the attributes directly; gauges are read from `sources` at scrape time."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.heartbeats = 0
        """Exchanges on the fast path; added to the next two on export."""
        self.messages_received = 0
        self.messages_sent = 0
        self.websocket_connections = 0
        self.health_failures = 0
        self.offers = 0
        self.full_state_requests = 0
        self.config_updates: Counter[str] = Counter(success=0, failure=0)
        self.refused: Counter[str] = Counter()
        """Connections and requests turned away, by reason."""
        self.closed: Counter[str] = Counter()
        """Connections ended, by CloseReason."""
        self.bad_messages: Counter[str] = Counter()
        self.authentications: Counter[tuple[str, str]] = Counter()
        """(method, result) of agents that were to prove who they are."""
        self.link_messages: Counter[str] = Counter()
        """Messages on the link, by kind: sync_received, sync_sent, report_sent, report_acked."""
        self.store_failures = 0
        self.blob_fetches: Counter[str] = Counter(done=0, failed=0)
        """Attempts to fetch package files from the control plane, by result."""
        self.blob_requests: Counter[str] = Counter(hit=0, miss=0, refused=0)
        """Download requests: the file was here, was not here yet, or was refused."""
        self.blob_fetch_bytes = 0
        self.verification_failures = 0
        """Package files that did not match their hash."""
        self.package_updates: Counter[str] = Counter(success=0, failure=0)
        """Package offers that agents reported on, by result."""
        self.certificates: Callable[[], dict[str, float]] = dict
        """Use (`agents`, `link`) → seconds until the certificate ends."""
        self.reload_failures: Callable[[], int] = int
        """Credential files that changed and could not be loaded."""
        self.downloads: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
        """(bytes sent, downloads completed, downloads aborted), read at scrape time."""
        self.sources: dict[str, tuple[str, Callable[[], float]]] = {}
        """Gauge name → (help, reader)."""
        self.registry = CollectorRegistry()
        self.update_seconds = Histogram(
            "opamp_server_config_update_duration_seconds",
            "From an offer to the agent's APPLIED or FAILED",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        yield _counter(
            "opamp_server_messages_received",
            "Messages from agents",
            self.messages_received + self.heartbeats,
            type="AgentToServer",
        )
        yield _counter(
            "opamp_server_messages_sent",
            "Messages to agents",
            self.messages_sent + self.heartbeats,
            type="ServerToAgent",
        )
        yield _counter(
            "opamp_server_websocket_connections", "Accepted WebSocket connections", self.websocket_connections
        )
        yield _counter(
            "opamp_server_health_check_failures", "Times that an agent became unhealthy", self.health_failures
        )
        yield _counter("opamp_relay_offers", "Remote configs offered", self.offers)
        yield _counter(
            "opamp_relay_full_state_requests", "Requests for an agent's full state", self.full_state_requests
        )
        yield _counter("opamp_relay_store_failures", "Failed writes to the local store", self.store_failures)
        yield _counter("opamp_relay_log_dropped", "Log lines dropped because of a slow reader", log.dropped())
        yield _counter(
            "opamp_relay_tls_reload_failures", "Credential files that could not be loaded", self.reload_failures()
        )
        expiry = GaugeMetricFamily(
            "opamp_relay_certificate_expiry_seconds", "Seconds until a certificate ends", labels=["use"]
        )
        for use, seconds in sorted(self.certificates().items()):
            expiry.add_metric([use], seconds)
        yield expiry
        for name, text, label, counts in (
            (
                "opamp_server_config_updates",
                "Configs that agents applied or failed to apply",
                "status",
                self.config_updates,
            ),
            ("opamp_relay_refused", "Connections and requests turned away", "reason", self.refused),
            ("opamp_relay_connections_closed", "Closed connections", "reason", self.closed),
            ("opamp_relay_bad_messages", "Invalid messages", "reason", self.bad_messages),
            ("opamp_relay_link_messages", "Messages on the link to the control plane", "kind", self.link_messages),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family
        authentications = CounterMetricFamily(
            "opamp_relay_auth", "Agents that authenticated, or were refused", labels=["method", "result"]
        )
        for labels, count in sorted(self.authentications.items()):
            authentications.add_metric(list(labels), count)
        yield authentications
        fetches = CounterMetricFamily(
            "opamp_relay_blob_fetches", "Attempts to fetch package files from the control plane", labels=["result"]
        )
        for result, count in sorted(self.blob_fetches.items()):
            fetches.add_metric([result], count)
        yield fetches
        requests = CounterMetricFamily(
            "opamp_relay_blob_requests",
            "Download requests: the file was here, was not here yet, or was refused",
            labels=["result"],
        )
        for result, count in sorted(self.blob_requests.items()):
            requests.add_metric([result], count)
        yield requests
        sent, completed, aborted = self.downloads()
        yield _counter(
            "opamp_relay_blob_fetch_bytes",
            "Bytes of package files fetched from the control plane",
            self.blob_fetch_bytes,
        )
        yield _counter("opamp_relay_blob_serve_bytes", "Bytes of package files sent to agents", sent)
        yield _counter(
            "opamp_relay_blob_verification_failures",
            "Package files that did not match their hash",
            self.verification_failures,
        )
        downloads = CounterMetricFamily(
            "opamp_server_package_downloads", "Package downloads by agents", labels=["status"]
        )
        for status, count in (("success", completed), ("failure", aborted)):
            downloads.add_metric([status], count)
        yield downloads
        updates = CounterMetricFamily(
            "opamp_relay_package_updates", "Package offers that agents reported on", labels=["status"]
        )
        for status, count in sorted(self.package_updates.items()):
            updates.add_metric([status], count)
        yield updates
        for name, (text, read) in self.sources.items():
            yield _gauge(name, text, read(), region=self.region)

    def expose(self) -> bytes:
        """The response to a scrape, in Prometheus text format."""
        return generate_latest(self.registry)


class ControlPlaneMetrics:
    """The control plane's counters; see `NodeMetrics`."""

    def __init__(self) -> None:
        self.reports = 0
        self.denied: Counter[str] = Counter(no_credential=0, credential=0, role=0, login=0)
        """Requests that were refused, by reason."""
        self.applies: Counter[str] = Counter(done=0, refused=0)
        self.notices: Counter[str] = Counter(sent=0, failed=0)
        """Notifications to people, by result."""
        self.shard_mismatches = 0
        self.claims_disputed = 0
        self.agents_refused = 0
        """Agent states that could not be read."""
        self.skews: Callable[[], dict[tuple[str, str], float]] = dict
        """(region, node) → seconds that its clock is behind; read at scrape time."""
        self.regions: Callable[[], dict[str, int]] = dict
        """Region → connected agents, read at scrape time."""
        self.agents: Callable[[], dict[tuple[str, str, str], int]] = dict
        """(region, config status, healthy) → agents, read at scrape time."""
        self.rollouts: Callable[[], dict[str, int]] = dict
        """State → active rollouts, read at scrape time."""
        self.rollout_steps: Counter[str] = Counter()
        """State → how often a rollout entered it."""
        self.sources: dict[str, tuple[str, Callable[[], float]]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        active = GaugeMetricFamily("opamp_control_plane_rollouts", "Active rollouts", labels=["state"])
        for state, count in sorted(self.rollouts().items()):
            active.add_metric([state], count)
        yield active
        agents = GaugeMetricFamily("opamp_control_plane_agents", "Known agents", labels=["region", "status", "healthy"])
        for labels, count in sorted(self.agents().items()):
            agents.add_metric(list(labels), count)
        yield agents
        steps = CounterMetricFamily(
            "opamp_control_plane_rollout_steps", "States that rollouts entered", labels=["state"]
        )
        for state, count in sorted(self.rollout_steps.items()):
            steps.add_metric([state], count)
        yield steps
        connected = GaugeMetricFamily("opamp_server_connected_agents", "Connected agents", labels=["region"])
        for region, count in sorted(self.regions().items()):
            connected.add_metric([region], count)
        yield connected
        yield _counter("opamp_control_plane_reports", "Status reports from nodes", self.reports)
        yield _counter("opamp_control_plane_log_dropped", "Log lines dropped because of a slow reader", log.dropped())
        yield _counter("opamp_control_plane_shard_mismatches", "Digest shards that differed", self.shard_mismatches)
        yield _counter("opamp_control_plane_agents_refused", "Agent states that could not be read", self.agents_refused)
        yield _counter(
            "opamp_control_plane_claims_disputed",
            "Agents that a node reported although they are live in another region",
            self.claims_disputed,
        )
        skews = GaugeMetricFamily(
            "opamp_control_plane_node_clock_skew_seconds",
            "Seconds that a node's clock is ahead",
            labels=["region", "node"],
        )
        for names, behind_s in sorted(self.skews().items()):
            skews.add_metric(list(names), -behind_s)
        yield skews
        applies = CounterMetricFamily("opamp_control_plane_applies", "Calls of apply", labels=["outcome"])
        for outcome, count in sorted(self.applies.items()):
            applies.add_metric([outcome], count)
        yield applies
        denied = CounterMetricFamily(
            "opamp_control_plane_requests_denied", "Requests of people that were refused", labels=["reason"]
        )
        for reason, count in sorted(self.denied.items()):
            denied.add_metric([reason], count)
        yield denied
        notices = CounterMetricFamily("opamp_control_plane_notices", "Notifications to people", labels=["outcome"])
        for outcome, count in sorted(self.notices.items()):
            notices.add_metric([outcome], count)
        yield notices
        for name, (text, read) in self.sources.items():
            yield _gauge(name, text, read())

    def expose(self) -> bytes:
        """The response to a scrape, in Prometheus text format."""
        return generate_latest(self.registry)


def _counter(name: str, text: str, value: float, **labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family

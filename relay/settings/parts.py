"""The parts of programs' settings. Each field documents its meaning, its unit, and the reason for its default."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from relay.documents import parse_duration


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a duration such as 30s, 15m, 1h30m")
    return value


Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=10 * 365 * 86400)]
"""Seconds. Written as `30s`, `15m`, `1h30m`, or a number of seconds."""

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(value: Any) -> Any:
    if isinstance(value, str):
        for unit, factor in _UNITS.items():
            if value.endswith(unit) and value.removesuffix(unit).strip().isdigit():
                return int(value.removesuffix(unit)) * factor
        raise ValueError(f"{value!r} is not a size such as 512KiB, 64MiB, 1GiB")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
"""Bytes. Written as `64MiB` or a number of bytes."""


class Part(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def split_endpoint(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[V6]:PORT`.

    Raises:
        ValueError: the host or port is missing, or the port is out of range.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(text: str) -> bool:
    """Whether an endpoint can be reached only from this machine."""
    host = split_endpoint(text)[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _network(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected a network such as 10.0.0.0/8")
    ipaddress.ip_network(value, strict=False)
    return value


Network = Annotated[str, BeforeValidator(_network)]
"""CIDR; a plain address is a network of one."""


_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*")


def _host_name(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(value))
        if _HOST_NAME.fullmatch(value) and len(value) < 254:
            return value
    raise ValueError("expected a host name or an IP address, without a port")


HostName = Annotated[str, BeforeValidator(_host_name)]
"""A host name or an IP address."""


def _endpoint(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected HOST:PORT")
    split_endpoint(value)
    return value


Endpoint = Annotated[str, BeforeValidator(_endpoint)]
"""`HOST:PORT`. With port 0 the system chooses a port; the log says which."""


class Listener(Part):
    """Where one port listens."""

    endpoint: Endpoint


class ApiTls(Part):
    """TLS on the admin API."""

    enabled: bool = False
    cert_file: str = ""
    """PEM, the full chain."""
    key_file: str = ""
    """PEM."""
    terminated: bool = False
    """A proxy in front ends TLS: tokens may be accepted without TLS beyond loopback."""


class LinkTls(Part):
    """TLS on the link. Nodes must then have a certificate."""

    enabled: bool | None = None
    """None: on, unless the link is on loopback or `auth.type` is `none`."""
    cert_file: str = ""
    """PEM, the full chain; empty: one of this control plane's own CA."""
    key_file: str = ""
    """PEM."""
    client_ca_file: str = ""
    """PEM: the CA of nodes' certificates; empty: this control plane's own, which nodes join."""


class LinkListener(Listener):
    """Where the link listens."""

    endpoint: Endpoint = "127.0.0.1:4330"
    tls: LinkTls = LinkTls()


class Keys(Part):
    """The keys of a control plane."""

    dir: str = ""
    """Folder of the keys that are not in the database; empty: `keys` below `data_dir`."""
    node_ttl: Duration = Field(default=7 * 86400.0, ge=10)
    """How long a certificate of a node is valid. Nodes renew theirs after two thirds of it."""
    renew_expired_for: Duration = 30 * 86400.0
    """How long after its end a node can still renew it: a region that was cut off for longer must join again."""


class ApiListener(Listener):
    """Where the admin API listens."""

    endpoint: Endpoint = "127.0.0.1:4340"
    tls: ApiTls = ApiTls()


class WebSocketListener(Part):
    """The main port for agents; it serves plain HTTP too."""

    endpoint: Endpoint = "127.0.0.1:4320"
    max_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    """Connections of all kinds on all ports for agents; beyond it 503 with Retry-After."""


class Tls(Part):
    """TLS on the ports for agents, gRPC included."""

    enabled: bool = False
    cert_file: str = ""
    """PEM, the full chain. Read at start-up."""
    key_file: str = ""
    """PEM."""
    client_ca_file: str = ""
    """PEM: CAs whose client certificates are trusted. Agents must then present one, unless `client_auth` says otherwise."""
    client_auth: Literal["none", "optional", "required"] | None = None
    """`required`: agents without a certificate are refused, after the handshake. Default: `required` with a
    `client_ca_file`, else `none`. On the gRPC port `optional` means `none`: gRPC can only require certificates."""
    crl_file: str = ""
    """PEM: certificates that their CA has revoked."""
    min_version: Literal["1.2", "1.3"] = "1.3"
    terminated: bool = False
    """A proxy in front ends TLS: tokens may be accepted without TLS beyond loopback."""

    @property
    def asks_for_certificates(self) -> Literal["none", "optional", "required"]:
        """`client_auth`, or its default."""
        return self.client_auth or ("required" if self.client_ca_file else "none")


class Limits(Part):
    """Bounds on one agent's effect on the others. Refusals are counted by reason."""

    max_message_bytes: Size = 64 << 20
    """Size of one message, before and after decompression (the protocol's recommendation)."""
    max_message_elements: int = Field(default=20_000, ge=100)
    """Fields of one large message at all depths: an empty field takes two bytes on the wire but a hundred in memory."""
    assembly_budget_bytes: Size = 512 << 20
    """Incomplete messages of all connections together; beyond it the newest is refused."""
    max_header_bytes: Size = 16 << 10
    """Size of an HTTP request's head."""
    header_timeout: Duration = 10.0
    """From accepting a connection to the end of the head; guards against clients that hold sockets open."""
    body_timeout: Duration = 30.0
    """From the head of an HTTP request to the end of its body."""
    max_send_buffer_bytes: Size = 4 << 20
    """Unsent bytes of one connection; beyond it the connection is closed as slow."""
    send_stall_timeout: Duration = 30.0
    """How long an agent may leave its socket full before it is closed as slow."""
    max_bad_messages: int = Field(default=10, ge=1)
    """Bad messages of one agent before its connection is closed, or it is detached from a shared one. A hundred good
    messages cancel out a bad one."""
    max_agents: int = Field(default=100_000, ge=1)
    """Agents known to one node; beyond it, new ones get UNAVAILABLE."""
    max_agents_per_connection: int | None = Field(default=None, ge=1)
    """Agents that share one connection through a proxy; None: only `max_agents` applies."""
    full_state_per_second: float = Field(default=500.0, gt=0)
    """Requests for agents' full state per second, so that a restart causes no stampede."""
    retry_after: Duration = 30.0
    """Retry-After of a refusal (the protocol recommends at least 30 s)."""
    http_keepalive: Duration = 90.0
    """Idle time of an HTTP connection: more than two polls of 30 s, or polls race with the close."""
    ping_interval: Duration = Field(default=25.0, ge=1)
    """A WebSocket that is silent for this long is pinged: proxies cut connections after 60 s of silence."""
    idle_timeout: Duration = 300.0
    """A WebSocket that is silent for this long despite pings is closed."""


class Batching(Part):
    """How changes are batched on their way to the control plane (the guide's `server.batching`)."""

    enabled: bool = True
    """False: each change is sent at once, by itself."""
    max_batch_size: int = Field(default=100, ge=1, le=1_000)
    """Agents in one report."""
    timeout: Duration = 1.0
    """How long a change may wait for others."""


class Compression(Part):
    """Compression of HTTP responses (the guide's `server.compression`)."""

    enabled: bool = True
    algorithm: Literal["gzip"] = "gzip"


class Metrics(Part):
    """Where Prometheus scrapes."""

    endpoint: Endpoint


class Logs(Part):
    """Logging."""

    level: Literal["debug", "info", "warn", "error"] = "info"
    format: Literal["auto", "json", "readable"] = "auto"
    """`auto`: readable on a terminal, JSON elsewhere."""


class Identity(Part):
    """What a node trusts of what agents report."""

    labels_from_attributes: Literal["all"] | tuple[str, ...] | None = None
    """Attributes that count as labels. Default: all if only this machine can connect, without
    credentials, else none."""


class Drain(Part):
    """The orderly shutdown of a node."""

    seconds: Duration = 25.0
    """Agents are disconnected evenly over this time; it fits into Kubernetes' 30 s."""


class ControlPlaneAddress(Part):
    """Where a node finds its control plane."""

    endpoint: Endpoint = "127.0.0.1:4330"
    max_staleness: Duration = 0.0
    """Age of the policy from which `on_stale` applies; 0 means never. A node that starts without its control plane does
    not know the age: it counts as too old."""
    join_endpoint: Endpoint | None = None
    """Where nodes join and renew their certificate; by default what the join token said."""
    join_token_file: str = ""
    """File with a join token. A node that has an identity does not look at it."""
    ca_file: str = ""
    """PEM: the CA of the control plane's certificate, if that is not its own. With `cert_file` and `key_file`, nodes do
    not join."""
    cert_file: str = ""
    """PEM: this node's certificate, by a CA that the control plane trusts; it names region and node in a URI."""
    key_file: str = ""
    """PEM."""
    root_file: str = ""
    """PEM: the public root key of the control plane, whose policy alone is taken. Without it, a node that did not join
    trusts the first control plane that it meets, and keeps to it."""
    on_stale: Literal["serve", "hold"] = "serve"
    """`hold`: answer agents but offer nothing new."""

    @field_validator("max_staleness")
    @classmethod
    def _longer_than_silence(cls, value: float) -> float:
        if 0 < value < 60:
            raise ValueError("must be 0 or at least 60s: the control plane confirms its policy only every 30s")
        return value


class NodeIdentity(Part):
    """Which node this is."""

    region: str = Field(default="local", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    name: str = Field(default="local-1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Unique in the region."""
    data_dir: str = ".data/node"
    record_ttl: Duration = 30 * 86400.0
    """How long a disconnected agent is remembered."""
    goodbye_ttl: Duration = 3600.0
    """How long an agent that said goodbye is remembered here; the control plane keeps it."""


class ConfigUpdate(Part):
    """Rules for config changes (the guide's `policies.config_update`)."""

    approval_required: bool = False
    approvals_needed: int = Field(default=1, ge=1, le=100)
    four_eyes: bool = False
    """Whoever made a change cannot approve it."""
    validation: Literal["warn", "enforce", "off"] = "warn"
    """How to treat structural errors in Collector configurations; see `opampctl validate`."""
    rollback_on_error: bool = True
    """What to do when a stage fails and its strategy does not say: roll back, else pause. Without a strategy, whether a
    change is rolled back when too many agents fail."""
    rollback_error_rate: float = Field(default=0.1, ge=0, lt=1)
    """Without a strategy: roll back when more than this share of the agents failed."""
    rollback_min_agents: int = Field(default=5, ge=1)
    """The least number of agents to judge `rollback_error_rate` by."""
    require_strategy: dict[str, str] | None = None
    """Labels: an assignment that may match agents with these must name a strategy. `{}`: every assignment must."""


class PackageUpdate(Part):
    """Rules for package changes (the guide's `policies.package_update`)."""

    approval_required: bool = False
    approvals_needed: int = Field(default=1, ge=1, le=100)
    four_eyes: bool = False
    rollback_on_error: bool = True
    rollback_error_rate: float = Field(default=0.1, ge=0, lt=1)
    rollback_min_agents: int = Field(default=5, ge=1)
    canary_percentage: float = Field(default=0, ge=0, le=99)
    """Without a strategy: the percentage of agents that go first; 0 for all at once."""
    canary_duration: Duration = 3600.0
    """How long the other agents wait."""
    canary_error_rate: float = Field(default=0.0, ge=0, le=1)
    """The share of canaries that may fail."""


class Policies(Part):
    """Rules for changes."""

    config_update: ConfigUpdate = ConfigUpdate()
    package_update: PackageUpdate = PackageUpdate()


class PackageStorage(Part):
    """Where package files are stored (the guide's `storage.packages`)."""

    type: Literal["folder", "s3", "gcs", "azure"] = "folder"
    """`folder`: below `data_dir`."""
    bucket: str = ""
    """Bucket of S3 or GCS; container of Azure."""
    prefix: str = Field(default="", pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    """Prefix of all keys in the bucket."""
    region: str = ""
    """S3 region."""
    endpoint: str = ""
    """URL of an S3-compatible store other than Amazon's."""
    options: dict[str, SecretStr] = Field(default_factory=dict)
    """More options of the client, by its own names (`access_key_id`, …). Credentials are best left to the environment."""
    max_bytes: Size = 100 << 30
    """Size of all packages together."""
    max_file_bytes: Size = 10 << 30
    """Size of one file."""
    keep_free: Size = 256 << 20
    """Free space to leave on the disk that uploads are staged on, for the database."""

    @model_validator(mode="after")
    def _complete(self) -> PackageStorage:
        if self.type != "folder" and not self.bucket:
            raise ValueError(f"bucket is required when the type is {self.type}")
        return self


class Storage(Part):
    """Where large objects are stored."""

    packages: PackageStorage = PackageStorage()


class Bandwidth(Part):
    """Bytes per second of downloads; None for no limit."""

    total: Size | None = None
    per_agent: Size | None = None
    """Limit of one download."""


class NodePackages(Part):
    """Packages at a node."""

    data_dir: str = ""
    """Folder for package files; empty: `packages` below `node.data_dir`."""
    max_bytes: Size = 20 << 30
    """Beyond it the least recently used files are removed, but never those that policy offers now."""
    keep_free: Size = 256 << 20
    """Free space to leave on the disk, for policy and records."""
    public_url: str = Field(default="", pattern=r"^(https?://[^/?#\s]+)?$")
    """Where agents download; empty: the address by which each agent reached this node. Required for agents over gRPC."""
    require_signature: bool = False
    """Offer and serve only files signed with one of the control plane's keys."""
    bandwidth: Bandwidth = Bandwidth()
    max_downloads: int = Field(default=1_000, ge=1)
    """Concurrent downloads; beyond it 503 with Retry-After."""
    fetches: int = Field(default=2, ge=1, le=64)
    """Concurrent fetches of files from the control plane."""


class Notifications(Part):
    """Where to report failed rollouts."""

    channels: dict[str, SecretStr] = Field(default_factory=dict)
    """Name used in strategies → Apprise URL (`slack://…`, `mailto://…`, `json://…`), which contains the channel's secret."""


class Retention(Part):
    """How long history is kept."""

    history: Duration = 365 * 86400.0
    """Ended rollouts, and contents of configs that no agent has any more."""


class ApiLimits(Part):
    """Limits of the admin API."""

    max_body_bytes: Size = 16 << 20
    """Size of one apply request."""

"""The parts that programs' settings are made of. Each field says what it is, its unit, and why its default."""

from __future__ import annotations

import ipaddress
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
"""Seconds; written as `30s`, `15m`, `1h30m`, or a number of seconds."""

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(value: Any) -> Any:
    if isinstance(value, str):
        for unit, factor in _UNITS.items():
            if value.endswith(unit) and value.removesuffix(unit).strip().isdigit():
                return int(value.removesuffix(unit)) * factor
        raise ValueError(f"{value!r} is not a size such as 512KiB, 64MiB, 1GiB")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
"""Bytes; written as `64MiB` or a number."""


class Part(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def split_endpoint(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[V6]:PORT`.

    Raises:
        ValueError: no host, no port, or a port out of range.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(text: str) -> bool:
    """Whether an endpoint can be reached from this machine only."""
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
"""As CIDR; an address alone is a network of one."""


def _endpoint(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected HOST:PORT")
    split_endpoint(value)
    return value


Endpoint = Annotated[str, BeforeValidator(_endpoint)]
"""`HOST:PORT`. Port 0 lets the system choose; the log says what it chose."""


class Listener(Part):
    """Where one port listens."""

    endpoint: Endpoint


class WebSocketListener(Part):
    """The first agents' port; it answers plain HTTP too."""

    endpoint: Endpoint = "127.0.0.1:4320"
    max_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    """Connections of all kinds on the agents' ports together; past it 503 with Retry-After."""


class Tls(Part):
    """TLS on the agents' ports and for agents over gRPC."""

    enabled: bool = False
    cert_file: str = ""
    """PEM, the whole chain. Read at start."""
    key_file: str = ""
    """PEM."""


class Limits(Part):
    """What bounds one agent's effect on the others. Every refusal is counted by reason."""

    max_message_bytes: Size = 64 << 20
    """One message, also after decompression (the protocol's recommendation)."""
    max_message_elements: int = Field(default=20_000, ge=100)
    """Fields of one large message at all depths: an empty one takes two bytes on the wire and a hundred in memory."""
    assembly_budget_bytes: Size = 512 << 20
    """Unfinished messages of all connections together; past it the newest is refused."""
    max_header_bytes: Size = 16 << 10
    """Head of an HTTP request."""
    header_timeout: Duration = 10.0
    """From the connection to a whole head; against clients that hold sockets open."""
    body_timeout: Duration = 30.0
    """From the head of an HTTP request to the end of its body."""
    max_send_buffer_bytes: Size = 4 << 20
    """Unsent bytes of one agent beyond which nothing more is written: it is closed as slow."""
    send_stall_timeout: Duration = 30.0
    """How long an agent may leave its socket full before it is closed as slow."""
    max_bad_messages: int = Field(default=10, ge=1)
    """Bad messages of one agent before its connection is closed, or it is detached from one that others share. A hundred
    good ones make up for one."""
    max_agents: int = Field(default=100_000, ge=1)
    """Agents known to one node; a newcomer past it is answered UNAVAILABLE."""
    max_agents_per_connection: int | None = Field(default=None, ge=1)
    """Agents that share one connection through a proxy; None: as many as the node may know."""
    full_state_per_second: float = Field(default=500.0, gt=0)
    """Agents asked for their full state in one second, so that a restart is no stampede."""
    retry_after: Duration = 30.0
    """What a refused client is told (the protocol recommends 30 s at least)."""
    http_keepalive: Duration = 90.0
    """Idle time of an HTTP connection: longer than two polls of 30 s, or polls race with the close."""
    ping_interval: Duration = Field(default=25.0, ge=1)
    """A WebSocket that is silent this long is pinged: proxies cut connections that are silent for 60 s."""
    idle_timeout: Duration = 300.0
    """A WebSocket that is silent this long, pings notwithstanding, is closed."""


class Batching(Part):
    """How changes are gathered on their way up (the guide's `server.batching`)."""

    enabled: bool = True
    """False: a change goes up at once, alone."""
    max_batch_size: int = Field(default=100, ge=1, le=1_000)
    """Agents in one report."""
    timeout: Duration = 1.0
    """The longest that a change waits for company."""


class Compression(Part):
    """Compression of HTTP answers (the guide's `server.compression`)."""

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
    """What of an agent may be trusted."""

    labels_from_attributes: Literal["all"] | tuple[str, ...] | None = None
    """Attributes that count as labels. Default: all where only this machine can connect, none elsewhere."""


class Auth(Part):
    """Who may connect. `none` must be written out to listen beyond loopback."""

    type: Literal["none"]


class Drain(Part):
    """The orderly end of a node."""

    seconds: Duration = 25.0
    """Over which agents are sent away evenly; inside Kubernetes' 30 s."""


class ControlPlaneAddress(Part):
    """Where a node finds its control plane."""

    endpoint: Endpoint = "127.0.0.1:4330"
    max_staleness: Duration = 0.0
    """Age of the policy past which `on_stale` applies; 0 means never. A node that starts without its control plane has a
    policy of unknown age: too old."""
    on_stale: Literal["serve", "hold"] = "serve"
    """`hold`: answer agents, offer nothing new."""

    @field_validator("max_staleness")
    @classmethod
    def _longer_than_silence(cls, value: float) -> float:
        if 0 < value < 60:
            raise ValueError("0 or at least 60s, since the control plane confirms every 30 s that nothing has changed")
        return value


class NodeIdentity(Part):
    """Which node this is."""

    region: str = Field(default="local", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    name: str = Field(default="local-1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Unique in the region."""
    data_dir: str = ".data/node"
    record_ttl: Duration = 30 * 86400.0
    """How long an agent that is away is remembered."""
    goodbye_ttl: Duration = 3600.0
    """How long one that said that it leaves is; the control plane goes on knowing it."""


class ConfigUpdate(Part):
    """What a change of config needs (the guide's `policies.config_update`)."""

    approval_required: bool = False
    approvals_needed: int = Field(default=1, ge=1, le=100)
    four_eyes: bool = False
    """Whoever made a change cannot approve it."""
    validation: Literal["warn", "enforce", "off"] = "warn"
    """What comes of errors in the structure of Collectors' configurations: see `opampctl validate`."""
    rollback_on_error: bool = True
    """Where a strategy does not say what happens when a stage fails: roll back, else pause. A change without a strategy
    is taken back where too many of its agents failed, or else stays."""
    rollback_error_rate: float = Field(default=0.1, ge=0, lt=1)
    """Of a change without a strategy: more than this share of its agents,"""
    rollback_min_agents: int = Field(default=5, ge=1)
    """of at least so many."""
    require_strategy: dict[str, str] | None = None
    """Labels: an assignment that may match agents with these must name a strategy. `{}`: every one."""


class PackageUpdate(Part):
    """What a change of packages needs (the guide's `policies.package_update`)."""

    approval_required: bool = False
    approvals_needed: int = Field(default=1, ge=1, le=100)
    four_eyes: bool = False
    rollback_on_error: bool = True
    rollback_error_rate: float = Field(default=0.1, ge=0, lt=1)
    rollback_min_agents: int = Field(default=5, ge=1)
    canary_percentage: float = Field(default=0, ge=0, le=99)
    """Where an assignment names no strategy: the share of agents that go first; 0 for all at once."""
    canary_duration: Duration = 3600.0
    """How long the others wait for them."""
    canary_error_rate: float = Field(default=0.0, ge=0, le=1)
    """The most of them that may fail."""


class Policies(Part):
    """Rules for changes."""

    config_update: ConfigUpdate = ConfigUpdate()
    package_update: PackageUpdate = PackageUpdate()


class PackageStorage(Part):
    """Where package bytes are kept (the guide's `storage.packages`)."""

    type: Literal["folder", "s3", "gcs", "azure"] = "folder"
    """`folder`: below `data_dir`."""
    bucket: str = ""
    """Of S3 or GCS; the container of Azure."""
    prefix: str = Field(default="", pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    """Of all keys in it."""
    region: str = ""
    """Of S3."""
    endpoint: str = ""
    """URL of a store that speaks S3 and is not Amazon's."""
    options: dict[str, str] = Field(default_factory=dict, repr=False)
    """More for the client, by its own names (`access_key_id`, …). Credentials are best left to the environment."""
    max_bytes: Size = 100 << 30
    """Of all packages together."""
    max_file_bytes: Size = 10 << 30
    """Of one file."""
    keep_free: Size = 256 << 20
    """Of the disk that uploads gather on: the database must not suffer from them."""

    @model_validator(mode="after")
    def _complete(self) -> PackageStorage:
        if self.type != "folder" and not self.bucket:
            raise ValueError(f"bucket is required when the type is {self.type}")
        return self


class Storage(Part):
    """Where large things are kept."""

    packages: PackageStorage = PackageStorage()


class Bandwidth(Part):
    """Bytes a second of downloads; None for no bound."""

    total: Size | None = None
    per_agent: Size | None = None
    """Of one download."""


class NodePackages(Part):
    """Packages at a node."""

    data_dir: str = ""
    """Of their bytes; empty: `packages` below `node.data_dir`."""
    max_bytes: Size = 20 << 30
    """Past it, those that were used longest ago go, never what policy offers now."""
    keep_free: Size = 256 << 20
    """Of the disk: policy and records must not suffer from packages."""
    public_url: str = Field(default="", pattern=r"^(https?://[^/?#\s]+)?$")
    """Where agents download; empty: the address by which each of them reached this node. Agents over gRPC need it."""
    require_signature: bool = False
    """Offer and serve only what a key of the control plane's policy has signed."""
    bandwidth: Bandwidth = Bandwidth()
    max_downloads: int = Field(default=1_000, ge=1)
    """At once; past it 503 with Retry-After."""
    fetches: int = Field(default=2, ge=1, le=64)
    """Files fetched at once from the control plane."""


class Notifications(Part):
    """Where failed rollouts are told."""

    channels: dict[str, SecretStr] = Field(default_factory=dict)
    """Name, as strategies say it → URL of apprise (`slack://…`, `mailto://…`, `json://…`). Holds the channel's secret."""


class Retention(Part):
    """How long what is over is remembered."""

    history: Duration = 365 * 86400.0
    """Ended rollouts, and the contents of configs that nobody has any more."""


class ApiLimits(Part):
    """Bounds of the admin API."""

    max_body_bytes: Size = 16 << 20
    """One apply."""

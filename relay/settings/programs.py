"""The settings of each program. Rules between fields are in `checks`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from relay.settings import parts
from relay.settings.auth import Admin, ApiKeyRules, ControlPlaneAuth, NodeAuth
from relay.settings.parts import Part


class NodeServer(Part):
    """The side of a node that faces agents."""

    websocket: parts.WebSocketListener = parts.WebSocketListener()
    http: parts.Listener = parts.Listener(endpoint="127.0.0.1:4321")
    grpc: parts.Listener = parts.Listener(endpoint="127.0.0.1:4322")
    tls: parts.Tls = parts.Tls()
    limits: parts.Limits = parts.Limits()
    batching: parts.Batching = parts.Batching()
    compression: parts.Compression = parts.Compression()
    heartbeat_interval: parts.Duration = Field(default=30.0, ge=1)
    """The longest heartbeat interval of any agent. On a shared connection, an agent that misses three counts as gone."""
    trusted_proxies: tuple[parts.Network, ...] = ()
    """Proxies trusted to name the client: PROXY protocol, Forwarded, X-Forwarded-For, -Proto, -Host."""
    max_connections: int | None = Field(default=None, ge=1)
    """The guide's alternative to `websocket.max_connections`; the smaller of the two applies."""


class NodeTelemetry(Part):
    """A node's metrics and logs."""

    metrics: parts.Metrics = parts.Metrics(endpoint="127.0.0.1:8888")
    logs: parts.Logs = parts.Logs()


class NodeSettings(Part):
    """`opamp-relay node`. All changes need a restart, except `telemetry.logs.level`."""

    node: parts.NodeIdentity = parts.NodeIdentity()
    control_plane: parts.ControlPlaneAddress = parts.ControlPlaneAddress()
    server: NodeServer = NodeServer()
    telemetry: NodeTelemetry = NodeTelemetry()
    identity: parts.Identity = parts.Identity()
    packages: parts.NodePackages = parts.NodePackages()
    drain: parts.Drain = parts.Drain()
    auth: NodeAuth | None = None

    @property
    def trusted_attributes(self) -> Literal["all"] | tuple[str, ...]:
        """Attributes of an agent that count as labels."""
        if self.identity.labels_from_attributes is not None:
            return self.identity.labels_from_attributes
        if self.auth is not None and self.auth.type != "none":
            return ()  # labels come with the credentials
        return "all" if all(parts.is_loopback(e) for _, e in self.agent_endpoints()) else ()

    def agent_endpoints(self) -> list[tuple[str, str]]:
        """(settings path, endpoint) of the ports that agents use."""
        return [
            ("server.websocket.endpoint", self.server.websocket.endpoint),
            ("server.http.endpoint", self.server.http.endpoint),
            ("server.grpc.endpoint", self.server.grpc.endpoint),
        ]

    def endpoints(self) -> list[tuple[str, str]]:
        """(settings path, endpoint) of everything that listens."""
        return [*self.agent_endpoints(), ("telemetry.metrics.endpoint", self.telemetry.metrics.endpoint)]

    @property
    def identity_dir(self) -> Path:
        """The folder of this node's certificate and key."""
        return Path(self.node.data_dir) / "identity"


class ControlPlaneServer(Part):
    """What a control plane listens on."""

    link: parts.LinkListener = parts.LinkListener()
    """gRPC, for nodes."""
    join: parts.Listener = parts.Listener(endpoint="127.0.0.1:4331")
    """HTTPS, for nodes that join or renew; open where the link has TLS by this control plane's own CA."""
    names: tuple[parts.HostName, ...] = ()
    """Names and addresses by which nodes reach it: they go into its certificate, the first into join tokens."""
    api: parts.ApiListener = parts.ApiListener()
    """HTTP, for people."""
    limits: parts.ApiLimits = parts.ApiLimits()


class ControlPlaneTelemetry(Part):
    """A control plane's metrics and logs."""

    metrics: parts.Metrics = parts.Metrics(endpoint="127.0.0.1:8889")
    logs: parts.Logs = parts.Logs()


class ControlPlaneSettings(Part):
    """`opamp-relay control-plane`. All changes need a restart."""

    data_dir: str = ".data/control-plane"
    server: ControlPlaneServer = ControlPlaneServer()
    telemetry: ControlPlaneTelemetry = ControlPlaneTelemetry()
    policies: parts.Policies = parts.Policies()
    storage: parts.Storage = parts.Storage()
    notifications: parts.Notifications = parts.Notifications()
    retention: parts.Retention = parts.Retention()
    auth: ControlPlaneAuth = ControlPlaneAuth()
    admin: Admin = Admin()
    keys: parts.Keys = parts.Keys()

    @property
    def link_has_tls(self) -> bool:
        """Whether the link has TLS."""
        enabled = self.server.link.tls.enabled
        if enabled is None:
            return self.auth.type != "none" and not parts.is_loopback(self.server.link.endpoint)
        return enabled

    @property
    def nodes_join(self) -> bool:
        """Whether nodes get their certificates here."""
        return self.link_has_tls and not self.server.link.tls.client_ca_file

    @property
    def names(self) -> tuple[str, ...]:
        """`server.names`, or the names of loopback."""
        return self.server.names or ("127.0.0.1", "localhost")

    @property
    def keys_dir(self) -> str:
        """The folder of the keys."""
        return self.keys.dir or str(Path(self.data_dir) / "keys")

    def endpoints(self) -> list[tuple[str, str]]:
        """(settings path, endpoint) of everything that listens."""
        return [
            ("server.link.endpoint", self.server.link.endpoint),
            *([("server.join.endpoint", self.server.join.endpoint)] if self.nodes_join else []),
            ("server.api.endpoint", self.server.api.endpoint),
            ("telemetry.metrics.endpoint", self.telemetry.metrics.endpoint),
        ]


class StandaloneServer(NodeServer):
    """The listeners of both programs."""

    link: parts.Listener = parts.Listener(endpoint="127.0.0.1:4330")
    api: parts.ApiListener = parts.ApiListener()
    api_limits: parts.ApiLimits = parts.ApiLimits()


class StandaloneSettings(Part):
    """`opamp-relay standalone`: a control plane and a node of region `local` in one process."""

    data_dir: str = ".data/standalone"
    node: parts.NodeIdentity = parts.NodeIdentity()
    server: StandaloneServer = StandaloneServer()
    telemetry: NodeTelemetry = NodeTelemetry()
    identity: parts.Identity = parts.Identity()
    policies: parts.Policies = parts.Policies()
    storage: parts.Storage = parts.Storage()
    notifications: parts.Notifications = parts.Notifications()
    retention: parts.Retention = parts.Retention()
    packages: parts.NodePackages = parts.NodePackages()
    drain: parts.Drain = parts.Drain(seconds=0)
    auth: NodeAuth | None = None
    admin: Admin = Admin()

    def endpoints(self) -> list[tuple[str, str]]:
        """(settings path, endpoint) of everything that listens."""
        return [
            *self.for_node().endpoints(),
            ("server.link.endpoint", self.server.link.endpoint),
            ("server.api.endpoint", self.server.api.endpoint),
        ]

    def for_node(self) -> NodeSettings:
        """The settings of the node."""
        names = set(NodeServer.model_fields)
        return NodeSettings(
            node=self.node.model_copy(update={"data_dir": str(Path(self.data_dir) / "node")}),
            control_plane=parts.ControlPlaneAddress(endpoint=self.server.link.endpoint),
            server=NodeServer(**{name: getattr(self.server, name) for name in names}),
            telemetry=self.telemetry,
            identity=self.identity,
            packages=self.packages,
            drain=self.drain,
            auth=self.auth,
        )

    def for_control_plane(self) -> ControlPlaneSettings:
        """The settings of the control plane. Its metrics get a port of their own, chosen by the system."""
        return ControlPlaneSettings(
            data_dir=str(Path(self.data_dir) / "control-plane"),
            server=ControlPlaneServer(
                link=parts.LinkListener(endpoint=self.server.link.endpoint),
                api=self.server.api,
                limits=self.server.api_limits,
            ),
            telemetry=ControlPlaneTelemetry(metrics=parts.Metrics(endpoint="127.0.0.1:0"), logs=self.telemetry.logs),
            policies=self.policies,
            storage=self.storage,
            notifications=self.notifications,
            retention=self.retention,
            auth=self._control_plane_auth(),
            admin=self.admin,
        )

    def _control_plane_auth(self) -> ControlPlaneAuth:
        auth = self.auth or NodeAuth()
        is_open = self.auth is not None and auth.type == "none"
        return ControlPlaneAuth(type="none" if is_open else None, api_key=auth.api_key or ApiKeyRules())


Settings = NodeSettings | ControlPlaneSettings | StandaloneSettings
